"""Table and chart of the study `encoder_pruning`."""

import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.studies.measure import Estimate, Timing
from eval.studies.output import GREY, change, chart, table

FORMS = {
    "baseline": "no pruning",
    "schedule": "static schedule",
    "threshold": "threshold (mask)",
    "untrained schedule": "schedule, model trained without",
    "random": "schedule, random tokens (control)",
}
"""What is compared, in the order of the table, as people read it."""

TIMED_AS = {form: form for form in FORMS} | {"untrained schedule": "schedule", "random": "schedule"}
"""The form whose program is timed: which tokens a schedule keeps does not matter to it."""

_COLORS = {"baseline": "#2c8f4e", "schedule": "#d1495b", "threshold": "#2a7f9e", "random": GREY}


@dataclasses.dataclass(frozen=True)
class Row:
    """One form of pruning, all seeds together.

    Attributes:
      tokens: that the blocks after the first see, mean over pictures and seeds.
      flops: of one picture by formula, as if a masked token cost nothing.
      xla_flops: of one picture in the compiled program, by XLA's count.
      time: of a batch.
      difference: to the baseline's accuracy, paired.
    """

    form: str
    tokens: tuple[float, ...]
    flops: float
    xla_flops: float
    time: Timing
    accuracy: Estimate
    difference: Estimate

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def tables(rows: Sequence[Row]) -> str:
    """What each form costs, how accurate it is, and whether the schedule meets what the study was to show."""
    base = rows[0]
    cost_head = ("form", "tokens by block", "MFLOPs", "change", "XLA's count", "change", "time of 64, ms", "change")
    costs = [_costs(row, base) for row in rows if TIMED_AS[row.form] == row.form]
    head = ("form", "accuracy, %", "difference to no pruning, points")
    accuracies = [
        (FORMS[row.form], row.accuracy.percent(), "" if row is base else row.difference.percent(sign=True))
        for row in rows
    ]
    return f"{table(cost_head, costs)}\n{table(head, accuracies)}\n{_verdict(rows)}"


def _costs(row: Row, base: Row) -> tuple[str, ...]:
    return (
        FORMS[row.form],
        ", ".join(f"{count:.0f}" for count in row.tokens),
        f"{row.flops / 1e6:.1f}",
        change(row.flops / base.flops),
        f"{row.xla_flops / 1e6:.1f}",
        change(row.xla_flops / base.xla_flops),
        row.time.milliseconds(),
        change(row.time.ratio(base.time)),
    )


def _verdict(rows: Sequence[Row]) -> str:
    base, own = rows[0], next(row for row in rows if row.form == "schedule")
    within = "within" if base.accuracy.holds(own.accuracy.mean) else "outside"
    flops, time = change(own.flops / base.flops), change(own.time.ratio(base.time))
    return (
        f"The static schedule: {flops} FLOPs, {time} time. Its accuracy of {100 * own.accuracy.mean:.1f} % lies "
        f"{within} the baseline's 95 % interval ({100 * base.accuracy.low:.1f} to {100 * base.accuracy.high:.1f})."
    )


def draw_chart(rows: Sequence[Row], path: Path, *, note: str) -> None:
    """Accuracy of each form, and beside it what was saved on paper, by XLA's count and by the clock."""
    with chart(path, title="encoder_pruning: tokens dropped by their norm", note=note) as (left, right):
        _draw_accuracy(left, rows)
        _draw_cost(right, [row for row in rows if TIMED_AS[row.form] == row.form])


def _draw_accuracy(axes: Any, rows: Sequence[Row]) -> None:
    base = rows[0].accuracy
    axes.axhspan(100 * base.low, 100 * base.high, color="#2c8f4e", alpha=0.12, linewidth=0)
    for i, row in enumerate(rows):
        mean, low, high = (100 * value for value in (row.accuracy.mean, row.accuracy.low, row.accuracy.high))
        bars = [[mean - low], [high - mean]]
        axes.errorbar([i], [mean], yerr=bars, marker="o", capsize=3, color=_COLORS.get(row.form, "#a0721a"))
        axes.annotate(f"{mean:.1f}", (i, mean), (8, 0), textcoords="offset points", va="center", fontsize=9)
    names = [textwrap.fill(FORMS[row.form], 11) for row in rows]
    axes.set_xticks(range(len(rows)), names, fontsize=8)
    axes.set_xlim(-0.4, len(rows) - 0.3)
    axes.set_title("accuracy, % (bars: 95 %; band: that of no pruning)", loc="left", fontsize=10)


def _draw_cost(axes: Any, rows: Sequence[Row]) -> None:
    base = rows[0]
    measures = {
        "FLOPs by formula (masked tokens free)": lambda row: row.flops / base.flops,
        "FLOPs of the compiled program (XLA)": lambda row: row.xla_flops / base.xla_flops,
        "measured time": lambda row: row.time.ratio(base.time),
    }
    colors = ("#c9ced6", "#8fa3b8", "#d1495b")
    for offset, (label, measure), color in zip((-0.26, 0, 0.26), measures.items(), colors, strict=True):
        places = [i + offset for i in range(len(rows))]
        drawn = axes.bar(places, [100 * measure(row) for row in rows], width=0.24, color=color, label=label)
        axes.bar_label(drawn, fmt="%.0f", fontsize=8, padding=2)
    axes.set_xticks(range(len(rows)), [FORMS[row.form] for row in rows], fontsize=9)
    axes.set_ylim(0, 150)
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    axes.set_title("cost, % of no pruning", loc="left", fontsize=10)
