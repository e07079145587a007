"""`python -m train plot RUN [RUN…] [--out FILE]`: loss, learning rates and tokens per second of runs, as one picture.

Each RUN is the folder of a run. One alone is drawn to its own loss.png; several are laid over each other.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from train.metrics import history
from vila_jax.bench.budgets.chart import require_matplotlib
from vila_jax.errors import ConfigError

console = Console(stderr=True, markup=False, highlight=False)

FILE = "loss.png"
_COLORS = ("#2a7f9e", "#d1495b", "#2c8f4e", "#7b4fa3", "#d98324", "#3f5bb5", "#8c5a3c")
_STYLES = ("-", "--", ":", "-.")
_SMOOTHED_OVER = 40
"""A point of the thick line is the mean of so many-th a part of the run."""

Rows = Sequence[Mapping[str, Any]]


def main(argv: list[str]) -> None:
    """Draws runs.

    Raises:
      VilaError: a folder without metrics, or matplotlib is not installed.
    """
    parser = argparse.ArgumentParser(prog="python -m train plot", description=__doc__)
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="folder of a run")
    parser.add_argument("--out", type=Path, help="the PNG file; by default loss.png, of one run in its folder")
    args = parser.parse_args(argv)
    own = args.runs[0] / FILE if len(args.runs) == 1 else Path(FILE)
    path = args.out or own
    draw({_label(folder, args.runs): rows_of(folder) for folder in args.runs}, path)
    console.print(f"drawn to {path}", soft_wrap=True)


def rows_of(folder: Path) -> Rows:
    """The logged steps of a run.

    Raises:
      ConfigError: there are none.
    """
    rows = [entry for entry in history.read(folder / history.FILE) if "loss" in entry]
    if not rows:
        raise ConfigError("no step was logged", where=str(folder / history.FILE), fix="Name the folder of a run.")
    return rows


def draw(runs: Mapping[str, Rows], path: Path) -> None:
    """Writes the picture of runs, by their names.

    Raises:
      VilaError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 9), dpi=120, layout="constrained")
    loss, rates, speed = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
    for index, (name, rows) in enumerate(runs.items()):
        color = _COLORS[index % len(_COLORS)]
        _draw_loss(loss, rows, color, name)
        _draw_rates(rates, rows, color if len(runs) > 1 else None, name if len(runs) > 1 else "")
        _line(speed, rows, "tokens_per_second", color=color, linewidth=1.2)
    loss.set_title(next(iter(runs)) if len(runs) == 1 else "", loc="left", fontweight="bold")
    for axes, label in ((loss, "loss"), (rates, "learning rate"), (speed, "tokens/s")):
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (loss, rates):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    speed.set_ylim(bottom=0)
    speed.set_xlabel("step")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def smoothed(values: Sequence[float], over: int) -> list[float]:
    """Mean of about so many values around each; fewer at the beginning, where losses fall fast. NaN is passed over."""
    out = []
    for index in range(len(values)):
        half = min(over // 2, index)
        near = [value for value in values[index - half : index + half + 1] if math.isfinite(value)]
        out.append(math.fsum(near) / len(near) if near else math.nan)
    return out


def _draw_loss(axes: Any, rows: Rows, color: str, name: str) -> None:
    steps, values = _series(rows, "loss")
    axes.plot(steps, values, color=color, alpha=0.3, linewidth=0.8)
    axes.plot(steps, smoothed(values, len(values) // _SMOOTHED_OVER), color=color, linewidth=1.6, label=name)
    broken = [step for step, value in zip(steps, values, strict=True) if not math.isfinite(value)]
    if broken:
        look = dict(color=color, transform=axes.get_xaxis_transform(), clip_on=False)
        axes.plot(broken, [0.0] * len(broken), "x", label=f"{name}: not finite", **look)


def _draw_rates(axes: Any, rows: Rows, color: str | None, name: str) -> None:
    """A line for every group: of its own colour, or of its own style in the colour of the run."""
    groups = dict.fromkeys(key for row in rows for key in row if key.startswith("learning_rate/"))
    for index, key in enumerate(groups):
        look = dict(color=color or _COLORS[index % len(_COLORS)], linestyle=_STYLES[index % len(_STYLES)])
        label = " ".join(filter(None, (name, key.removeprefix("learning_rate/"))))
        _line(axes, rows, key, label=label, linewidth=1.4, **look)


def _line(axes: Any, rows: Rows, key: str, **look: Any) -> None:
    axes.plot(*_series(rows, key), **look)


def _series(rows: Rows, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of the rows that have the key; NaN where a value was not finite."""
    found = [(row["step"], math.nan if row[key] is None else row[key]) for row in rows if key in row]
    return [step for step, _ in found], [value for _, value in found]


def _label(folder: Path, others: Sequence[Path]) -> str:
    """The last parts of a path by which it differs from the others."""
    for length in range(1, len(folder.parts) + 1):
        tails = [other.parts[-length:] for other in others]
        if tails.count(folder.parts[-length:]) == 1:
            return "/".join(folder.parts[-length:])
    return str(folder)
