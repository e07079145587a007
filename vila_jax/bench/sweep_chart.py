"""A sweep as a chart: time to the first token against visual tokens, and tokens per second against the batch."""

import pathlib
from collections.abc import Callable
from typing import Any

from vila_jax.bench.budgets.chart import require_matplotlib
from vila_jax.bench.results import Results, Row

_COLORS = ("#2a7f9e", "#d1495b", "#2c8f4e", "#7b4fa3", "#d98324", "#17a398", "#b5478f", "#6b7f1f")


def draw_sweep(results: Results, path: pathlib.Path) -> None:
    """Writes the chart as a PNG file. Bars reach from the 10th to the 90th percentile; floors are dashed.

    Raises:
      VilaError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 5.5), dpi=130, layout="constrained")
    first, rate = figure.subplots(1, 2)
    rows = [row for row in results.rows if row.refused is None]
    _draw(first, [row for row in rows if row.bench == "prefill"], "batch", _first_token)
    first.set(xlabel="visual tokens of a row", ylabel="milliseconds to the first token, on the device", yscale="log")
    _draw(rate, [row for row in rows if row.bench == "decode"], "budget", _rate)
    rate.set(xlabel="batch", ylabel="tokens per second, all rows together", xscale="log", yscale="log")
    batches = sorted({row.case["batch"] for row in rows})
    rate.set_xticks(batches, [str(batch) for batch in batches])
    rate.set_xticks([], minor=True)
    settings = results.settings
    model = next((row.case["model"] for row in results.rows), "")
    figure.suptitle(f"{model}: batch x budget", x=0.012, ha="left", fontsize=13, fontweight="bold")
    figure.supxlabel(f"{settings['device']}, {settings['machine']}. Dashed: floors.", fontsize=8, x=0.012, ha="left")
    figure.savefig(path)


_Number = int | float
_Point = tuple[_Number, _Number, _Number, _Number, _Number]  # x; median, 10th and 90th percentile; floor


def _first_token(row: Row) -> _Point:
    times = row.times["device"]
    floor = 1000 * row.facts["floor_seconds"]
    return row.facts["visual_tokens"], 1000 * times.median, 1000 * times.p10, 1000 * times.p90, floor


def _rate(row: Row) -> _Point:
    times, batch = row.times["step"], row.case["batch"]
    return batch, batch / times.median, batch / times.p90, batch / times.p10, batch / row.facts["floor_seconds"]


def _draw(axes: Any, rows: list[Row], line: str, point: Callable[[Row], _Point]) -> None:
    """A line for every value of a key of the case."""
    for i, value in enumerate(dict.fromkeys(row.case[line] for row in rows)):
        points = sorted(point(row) for row in rows if row.case[line] == value)
        x, middle, low, high, floor = zip(*points, strict=True)
        bars = ([m - lo for m, lo in zip(middle, low, strict=True)], [h - m for m, h in zip(middle, high, strict=True)])
        color = _COLORS[i % len(_COLORS)]
        axes.errorbar(x, middle, yerr=bars, color=color, marker="o", markersize=4, label=f"{line} {value or 'full'}")
        axes.plot(x, floor, color=color, linestyle=(0, (4, 2)), linewidth=1)
    if rows:
        axes.legend(frameon=False, fontsize=9)
    axes.grid(axis="y", color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
