"""The results as a chart: accuracy against visual tokens and against milliseconds, coarse and fine questions apart.

Without an exam: FLOPs and milliseconds against visual tokens.
"""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vila_jax.bench.budgets.rows import ALL_TOKENS, BASELINES, Bench, Cost, Row
from vila_jax.errors import VilaError

_COLORS = ("#d1495b", "#2a7f9e", "#2c8f4e", "#7b4fa3", "#d98324", "#17a398", "#b5478f", "#6b7f1f", "#3f5bb5", "#8c5a3c")
_MARKERS = ("o", "^", "D")
_BASELINE_MARKERS = ("s", "v", "P", "X")
_GRAY, _FULL = "#7d8592", "#1d1f24"

_Value = Callable[[Row], float]


@dataclasses.dataclass(frozen=True)
class _Axis:
    label: str
    value: _Value


_TOKENS = _Axis("visual tokens of a picture, mean", lambda row: _known_tokens(row)[0])
_TTFT = _Axis("milliseconds to the first token", lambda row: 1000 * _known_cost(row).first_token.median)


def require_matplotlib() -> None:
    """Before minutes of work rather than after them.

    Raises:
      VilaError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        fix = "Run: pip install 'vila-jax[demo]'"
        raise VilaError("charts are drawn by matplotlib, which is not installed", fix=fix)


def draw_chart(bench: Bench, path: pathlib.Path, *, title: str, note: str) -> None:
    """Writes the chart as a PNG file: a line for every method, through its KEEPs.

    Bars are 95 % intervals over the questions, or from the least to the greatest of the repeats.

    Args:
      path: the file.
      title: what was measured.
      note: the small print below.

    Raises:
      VilaError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    groups = ("coarse", "fine") if bench.kinds else ()
    figure = Figure(figsize=(12.5, 9.5 if groups else 5.5), dpi=130, layout="constrained")
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold")
    panels = figure.subplots(max(1, len(groups)), 2, squeeze=False, sharey="row" if groups else False)
    lines = _lines(bench, examined=bool(groups))
    for row, group in zip(panels, groups, strict=False):
        for axes, against in zip(row, (_TOKENS, _TTFT), strict=True):
            _draw_accuracy(axes, bench, lines, group, against)
    if not groups:
        _draw_costs(panels[0], lines)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9, handlelength=2.4)
    figure.supxlabel(note, fontsize=8, color=_GRAY, x=0.012, ha="left")
    figure.savefig(path)


def _known_tokens(row: Row) -> tuple[float, int]:
    assert row.tokens is not None
    return row.tokens


def _known_cost(row: Row) -> Cost:
    assert row.cost is not None
    return row.cost


def _lines(bench: Bench, *, examined: bool) -> dict[str, list[Row]]:
    """What can be drawn, by method, fewest tokens first."""
    lines: dict[str, list[Row]] = {}
    for row in bench.rows:
        if row.cost is not None and row.refused is None and (row.marks is not None or not examined):
            lines.setdefault(row.case.method, []).append(row)
    return {method: sorted(rows, key=_TOKENS.value) for method, rows in lines.items()}


def styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How the lines of methods are drawn: baselines are gray and dashed, others differ in colour, then marker."""
    made: dict[str, dict[str, Any]] = {ALL_TOKENS: {"color": _FULL, "marker": "*", "markersize": 11, "zorder": 6}}
    others = [method for method in methods if method not in (*BASELINES, ALL_TOKENS)]
    for i, method in enumerate(others):
        marker = _MARKERS[i // len(_COLORS) % len(_MARKERS)]
        made[method] = {"color": _COLORS[i % len(_COLORS)], "marker": marker, "linewidth": 1.6, "zorder": 4}
    for method, marker in zip(BASELINES, _BASELINE_MARKERS, strict=True):
        made[method] = {"color": _GRAY, "marker": marker, "linestyle": (0, (4, 2)), "linewidth": 1.4, "zorder": 5}
    return made


def _draw_accuracy(axes: Any, bench: Bench, lines: Mapping[str, list[Row]], group: str, against: _Axis) -> None:
    drawn_as = styles(list(lines))
    for place, (method, rows) in enumerate(lines.items()):
        dodged = against is _TOKENS and method != ALL_TOKENS  # so that bars stand beside each other
        dodge = 1 + 0.012 * (place - len(lines) / 2) if dodged else 1
        x = [against.value(row) * dodge for row in rows]
        scores = [score for row in rows if (score := bench.score(row, group)) is not None]
        y = [100 * score.accuracy for score in scores]
        bounds = [bench.bounds(row, group) for row in rows]
        bars = [
            [value - 100 * low for value, (low, _) in zip(y, bounds, strict=True)],
            [100 * high - value for value, (_, high) in zip(y, bounds, strict=True)],
        ]
        drawn = axes.errorbar(x, y, yerr=bars, label=method, **{"markersize": 5, **drawn_as[method]})
        for part in drawn[2]:  # the bars
            part.set(alpha=0.35, linewidth=1)
    if ALL_TOKENS in lines and (score := bench.score(lines[ALL_TOKENS][0], group)) is not None:
        axes.axhline(100 * score.accuracy, color=_FULL, linewidth=1, linestyle=(0, (1, 2)))
    axes.set_title(f"{group} questions", loc="left", fontsize=12, fontweight="bold")
    axes.set_ylabel("right answers, %")
    _finish(axes, lines, against)


def _draw_costs(panels: Any, lines: Mapping[str, list[Row]]) -> None:
    """FLOPs and milliseconds up to the first token against visual tokens."""
    giga = _Axis("GFLOP to the first token", lambda row: _known_cost(row).total_flops / 1e9)
    drawn_as = styles(list(lines))
    for axes, against in zip(panels, (giga, _TTFT), strict=True):
        for method, rows in lines.items():
            y = [against.value(row) for row in rows]
            times = [_known_cost(row).first_token for row in rows]
            bars = [
                [value - 1000 * time.low for value, time in zip(y, times, strict=True)],
                [1000 * time.high - value for value, time in zip(y, times, strict=True)],
            ]
            drawn = axes.errorbar(
                [_TOKENS.value(row) for row in rows],
                y,
                yerr=bars if against is _TTFT else None,
                label=method,
                **{"markersize": 5, **drawn_as[method]},
            )
            for part in drawn[2]:
                part.set(alpha=0.35, linewidth=1)
        axes.set_ylabel(against.label)
        axes.set_ylim(bottom=0)
        _finish(axes, lines, _TOKENS)


def _finish(axes: Any, lines: Mapping[str, list[Row]], against: _Axis) -> None:
    """The horizontal axis: logarithmic in tokens, with a tick where most methods stand."""
    from matplotlib.ticker import NullLocator

    axes.set_xlabel(against.label)
    if against is _TOKENS:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        counts = sorted({round(_TOKENS.value(row)) for rows in lines.values() for row in rows})
        ticks = [count for i, count in enumerate(counts) if i == 0 or count > 1.15 * counts[i - 1]]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.grid(axis="y", color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
