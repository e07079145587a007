"""Table and chart of the study `channel_pruning`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.studies.measure import Estimate, Timing
from eval.studies.output import GREY, change, chart, table

FORMS = {
    "baseline": "no pruning",
    "magnitude": "by magnitude",
    "activation": "by activation",
    "random": "random channels (control)",
    "scratch": "small from the start (control)",
    "raw": "by magnitude, not fine-tuned",
}
"""What is compared, in the order of the table, as people read it."""

_STYLES: dict[str, dict[str, Any]] = {
    "magnitude": {"color": "#d1495b", "marker": "o", "linewidth": 2.4, "zorder": 5},
    "activation": {"color": "#2a7f9e", "marker": "^", "linewidth": 1.6},
    "random": {"color": GREY, "marker": "s", "linewidth": 1.6},
    "scratch": {"color": "#a0721a", "marker": "D", "linewidth": 1.6},
}  # what is not fine-tuned would squeeze the others: its numbers are in the table
_DODGE = {"magnitude": 1.0, "activation": 1.07, "random": 0.93, "scratch": 1.14}
"""Factors on the FLOPs, so that error bars stand beside each other."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a size of the network costs.

    Attributes:
      flops: of one picture by formula.
      xla_flops: of one picture in the compiled program, by XLA's count.
      weight_bytes: of the arrays of its weights.
      peak_bytes: that a large batch takes at its peak, weights and pictures included, if XLA computes
        the convolutions by itself; None where nothing tells.
      default_peak_bytes: where it gives them to YNNPACK, as it does by default; see `eval.studies.peak_memory`.
      one, batch: time of one picture, and of a batch.
    """

    flops: float
    xla_flops: float
    weight_bytes: int
    peak_bytes: int | None
    default_peak_bytes: int | None
    one: Timing
    batch: Timing


@dataclasses.dataclass(frozen=True)
class Row:
    """One form at one fraction of the channels, all seeds together; `difference` is to the baseline, paired."""

    form: str
    keep: float
    cost: Cost
    accuracy: Estimate
    difference: Estimate

    def to_json(self) -> dict[str, Any]:
        """Without the cost, which all forms of a size share."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "cost"}


def tables(rows: Sequence[Row], data: str, *, timed: int, held: int) -> str:
    """What each size costs, how accurate each form is, and whether half of the channels meets what was to be shown.

    Args:
      data: what the networks read.
      timed, held: pictures of the batches whose time and whose memory were measured.
    """
    base = rows[0]
    sizes = {row.keep: row.cost for row in rows}
    head = ("channels kept", "MFLOPs", "change", "XLA's count", "change", "weights, kB", "change")
    costs: list[tuple[str, ...]] = [
        (
            f"{100 * keep:g} %",
            *(f"{cost.flops / 1e6:.2f}", change(cost.flops / base.cost.flops)),
            *(f"{cost.xla_flops / 1e6:.2f}", change(cost.xla_flops / base.cost.xla_flops)),
            *(f"{cost.weight_bytes / 1e3:.1f}", change(cost.weight_bytes / base.cost.weight_bytes)),
        )
        for keep, cost in sizes.items()
    ]
    memory_head = (f"memory of {held:,} without YNNPACK, MB", "change", "with it, MB", "change")
    time_head = ("channels kept", *memory_head, "time of 1, ms", "change", f"time of {timed}, ms", "change")
    times: list[tuple[str, ...]] = [
        (
            f"{100 * keep:g} %",
            *_memory(cost.peak_bytes, base.cost.peak_bytes),
            *_memory(cost.default_peak_bytes, base.cost.default_peak_bytes),
            *(cost.one.milliseconds(), change(cost.one.ratio(base.cost.one))),
            *(cost.batch.milliseconds(), change(cost.batch.ratio(base.cost.batch))),
        )
        for keep, cost in sizes.items()
    ]
    accuracy_head = ("form", "channels kept", "accuracy, %", "difference to no pruning, points")
    accuracies: list[tuple[str, ...]] = [
        (
            FORMS[row.form],
            f"{100 * row.keep:g} %",
            row.accuracy.percent(),
            "" if row is base else row.difference.percent(sign=True),
        )
        for row in rows
    ]
    parts = [table(head, costs), table(time_head, times), table(accuracy_head, accuracies)]
    return "\n".join([f"Data: {data}.\n", *parts, _verdict(rows)])


def _memory(own: int | None, base: int | None) -> tuple[str, str]:
    return ("?", "") if own is None or base is None else (f"{own / 1e6:.1f}", change(own / base))


def _verdict(rows: Sequence[Row]) -> str:
    base, own = rows[0], next(row for row in rows if row.form == "magnitude" and row.keep == 0.5)
    within = "within" if base.accuracy.holds(own.accuracy.mean) else "outside"
    flops, weights = own.cost.flops / base.cost.flops, own.cost.weight_bytes / base.cost.weight_bytes
    memory, time = _memory(own.cost.peak_bytes, base.cost.peak_bytes)[1], own.cost.batch.ratio(base.cost.batch)
    return (
        f"Half of the channels, by magnitude, fine-tuned: {change(flops)} FLOPs, {change(weights)} weights, "
        f"{memory or 'unknown'} memory at the peak (without YNNPACK), {change(time)} time of a batch. Its "
        f"accuracy of {100 * own.accuracy.mean:.1f} % lies {within} the baseline's 95 % interval "
        f"({100 * base.accuracy.low:.1f} to {100 * base.accuracy.high:.1f})."
    )


def draw_chart(rows: Sequence[Row], path: Path, *, note: str) -> None:
    """Accuracy against FLOPs, and beside it what the sizes cost on paper, in memory and by the clock."""
    with chart(path, title="channel_pruning: convolutions with fewer channels", note=note) as (left, right):
        _draw_accuracy(left, rows)
        _draw_cost(right, rows)


def _draw_accuracy(axes: Any, rows: Sequence[Row]) -> None:
    base = rows[0]
    axes.axhspan(100 * base.accuracy.low, 100 * base.accuracy.high, color="#2c8f4e", alpha=0.12, linewidth=0)
    axes.axhline(100 * base.accuracy.mean, color="#2c8f4e", linewidth=1.4, label=FORMS["baseline"])
    for form, style in _STYLES.items():
        own = [row for row in rows if row.form == form]
        ends = [(100 * row.accuracy.mean, 100 * row.accuracy.low, 100 * row.accuracy.high) for row in own]
        bars = [[mean - low for mean, low, _ in ends], [high - mean for mean, _, high in ends]]
        x = [row.cost.flops / 1e6 * _DODGE[form] for row in own]
        axes.errorbar(x, [mean for mean, _, _ in ends], bars, capsize=2.5, elinewidth=1, label=FORMS[form], **style)
    places = {row.cost.flops / 1e6: f"{row.cost.flops / 1e6:.2f}\n{100 * row.keep:g} %" for row in rows}
    axes.set_xscale("log")
    axes.set_xticks(list(places), list(places.values()))
    axes.set_xticks([], minor=True)
    axes.set_xlabel("MFLOPs of a picture, and the channels kept")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.set_title("accuracy, % (bars: 95 %; band: that of no pruning)", loc="left", fontsize=10)


def _draw_cost(axes: Any, rows: Sequence[Row]) -> None:
    base, sizes = rows[0].cost, {row.keep: row.cost for row in rows}
    measures = {
        "FLOPs": lambda cost: cost.flops / base.flops,
        "weights": lambda cost: cost.weight_bytes / base.weight_bytes,
        "measured memory of a batch (without YNNPACK)": lambda cost: (cost.peak_bytes or 0) / (base.peak_bytes or 1),
        "measured time of a batch": lambda cost: cost.batch.ratio(base.batch),
    }
    colors = ("#c9ced6", "#8fa3b8", "#2a7f9e", "#d1495b")
    for i, (label, measure) in enumerate(measures.items()):
        places = [place + 0.2 * (i - 1.5) for place in range(len(sizes))]
        heights = [100 * measure(cost) for cost in sizes.values()]
        drawn = axes.bar(places, heights, width=0.19, color=colors[i], label=label)
        axes.bar_label(drawn, fmt="%.0f", fontsize=7, padding=2)
    axes.set_xticks(range(len(sizes)), [f"{100 * keep:g} %" for keep in sizes])
    axes.set_xlabel("channels kept")
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    axes.set_title("cost, % of no pruning", loc="left", fontsize=10)
