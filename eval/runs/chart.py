"""Runs of one task as a chart: its headline against visual tokens and against milliseconds."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval.runs.rows import Row
from vila_jax.bench.budgets.chart import require_matplotlib, styles
from vila_jax.bench.budgets.rows import ALL_TOKENS
from vila_jax.budgets import Budget

_GRAY = "#7d8592"
_AXES: tuple[tuple[str, Callable[[Row], float | None]], ...] = (
    ("visual tokens of a sample, mean", lambda row: row.visual_tokens),
    ("milliseconds of the device for a sample, median", lambda row: row.milliseconds),
)


def draw_chart(rows: Sequence[Row], path: Path, *, title: str, note: str) -> None:
    """Writes the chart as a PNG file: a line for every method, through its budgets; bars are 95 % intervals.

    Args:
      rows: runs of one task and one number of shots, with values.
      title: what was asked.
      note: the small print below.

    Raises:
      VilaError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    lines: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.visual_tokens or 0.0):
        lines.setdefault(method_of(row.run.header["budget"]), []).append(row)
    figure = Figure(figsize=(11.5, 4.8), dpi=130, layout="constrained")
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold")
    metric = rows[0].result["metric"]
    for axes, (label, value) in zip(figure.subplots(1, 2, sharey=True), _AXES, strict=True):
        _draw(axes, lines, value)
        axes.set_xlabel(label)
        axes.grid(axis="y", color="#e4e6ea", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel(f"{metric['name']}, {metric['headline']}" + (", %" if metric["scale"] == 100 else ""))
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9, handlelength=2.4)
    figure.supxlabel(note, fontsize=8, color=_GRAY, x=0.012, ha="left")
    figure.savefig(path)


def method_of(budget: str | None) -> str:
    """The budget without how much it keeps: what the runs of one line have in common."""
    if budget is None:
        return ALL_TOKENS
    options = ("".join(f",{name}={value}" for name, value in step.options) for step in Budget.parse(budget).steps)
    names = (step.method for step in Budget.parse(budget).steps)
    return "+".join(name + own for name, own in zip(names, options, strict=True))


def _draw(axes: Any, lines: dict[str, list[Row]], value: Callable[[Row], float | None]) -> None:
    drawn_as = styles(list(lines))
    for method, rows in lines.items():
        metrics = [row.result["metric"] for row in rows]
        y = [own["scale"] * own["value"] for own in metrics]
        bars = [
            [own["scale"] * (own["value"] - own["low"]) for own in metrics],
            [own["scale"] * (own["high"] - own["value"]) for own in metrics],
        ]
        x = [value(row) for row in rows]
        drawn = axes.errorbar(x, y, yerr=bars, label=method, capsize=2, **{"markersize": 5, **drawn_as[method]})
        for part in drawn[2]:  # the bars
            part.set(alpha=0.4, linewidth=1)
    if ALL_TOKENS in lines:
        own = lines[ALL_TOKENS][0].result["metric"]
        axes.axhline(own["scale"] * own["value"], color="#1d1f24", linewidth=1, linestyle=(0, (1, 2)))
    axes.set_xlim(left=0)
