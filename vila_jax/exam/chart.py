"""The results of an exam as a chart: accuracy against visual tokens, coarse and fine questions apart."""

import os
from collections.abc import Sequence
from typing import Any

from vila_jax.errors import VilaError
from vila_jax.exam.examiner import Method
from vila_jax.exam.results import LABELS, Row

_PANELS = {"coarse": "what is where: colours, shapes, counts, places", "fine": "reading: digits and words"}
_STYLES: dict[Method, dict[str, Any]] = {
    "hired": {"color": "#d1495b", "marker": "o", "linewidth": 2.4, "zorder": 5},
    "hired-code": {"color": "#d1495b", "marker": "o", "linewidth": 1.2, "linestyle": (0, (4, 2)), "mfc": "white"},
    "random": {"color": "#5b6472", "marker": "s", "linewidth": 1.6},
    "downsample": {"color": "#2a7f9e", "marker": "^", "linewidth": 1.6},
}
_DODGE = {"hired": 1.0, "hired-code": 1.03, "random": 0.97, "downsample": 0.94}
"""Factors on the tokens, so that error bars stand beside each other."""
_LEVELS: dict[Method, str] = {"full": "#2c8f4e", "blank": "#a0721a"}


def draw_chart(rows: Sequence[Row], path: str | os.PathLike[str], *, title: str, note: str) -> None:
    """Writes the chart as a PNG file.

    Points are means over the seeds, bars the 95 % interval over scenes. All tokens and the blank control are lines
    across the panels.

    Args:
      rows: of `tabulate`.
      path: the file.
      title: what was examined.
      note: the small print below: how many questions, by which command.

    Raises:
      VilaError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise VilaError(
            "charts are drawn by matplotlib, which is not installed", fix="Run: pip install 'vila-jax[demo]'"
        ) from error
    figure = Figure(figsize=(10.5, 5.0), dpi=150, layout="constrained")
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (group, caption) in zip(panels, _PANELS.items(), strict=True):
        _draw_panel(axes, rows, group)
        axes.set_title(f"{group} questions\n", loc="left", fontsize=12, fontweight="bold")
        axes.text(0, 1.02, caption, transform=axes.transAxes, fontsize=9.5, color="#5b6472")
    panels[0].set_ylabel("exact match, %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper right", ncols=len(labels), frameon=False, fontsize=9, handlelength=2.4
    )
    figure.supxlabel(note, fontsize=8, color="#5b6472", x=0.012, ha="left")
    figure.savefig(path)


def _draw_panel(axes: Any, rows: Sequence[Row], group: str) -> None:
    from matplotlib.ticker import NullLocator

    for method, style in _STYLES.items():
        own = sorted((row for row in rows if row.method == method), key=lambda row: row.tokens)
        if own:
            x = [row.tokens * _DODGE[method] for row in own]
            y = [100 * row.accuracy(group) for row in own]
            axes.errorbar(
                x, y, yerr=_bars(own, group), capsize=2.5, elinewidth=1, markersize=6, label=LABELS[method], **style
            )
    ticks = {row.tokens: f"{row.tokens:.0f}\n{100 * row.keep:g} %" for row in rows if row.method == "hired"}
    for row in rows:
        if row.method in _LEVELS:
            _draw_level(axes, row, group)
            ticks[row.tokens] = f"{row.tokens:.0f}\nall"
    axes.set_xscale("log")
    axes.set_xlim(min(ticks) / 1.25, max(ticks) * 1.12)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_ylim(-2, 102)
    axes.set_xlabel("visual tokens of a picture, and their share")
    axes.grid(axis="y", color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _bars(rows: Sequence[Row], group: str) -> list[list[float]]:
    """Lengths of the error bars in per cent, downwards and upwards."""
    ends = [(row.accuracy(group), *row.interval(group)) for row in rows]
    return [[100 * (mean - low) for mean, low, _ in ends], [100 * (high - mean) for mean, _, high in ends]]


def _draw_level(axes: Any, row: Row, group: str) -> None:
    """A line across, its point and error bar, and its name beside the point."""
    color, value = _LEVELS[row.method], 100 * row.accuracy(group)
    axes.axhline(value, color=color, linewidth=1.4, linestyle=(0, (1, 1.2)))
    bars = _bars([row], group)
    axes.errorbar(
        [row.tokens], [value], bars, capsize=2.5, elinewidth=1, color=color, marker="D", markersize=6, zorder=6
    )
    below = value > 92
    axes.text(
        row.tokens / 1.04,
        value - 1.2 if below else value + 1.2,
        f"{LABELS[row.method].removesuffix(' (control)')}: {value:.0f} %",
        color=color,
        fontsize=9.5,
        ha="right",
        va="top" if below else "bottom",
    )
