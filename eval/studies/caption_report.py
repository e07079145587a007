"""Tables and chart of the study `caption_alignment`."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.metrics.retrieval import TOP
from eval.studies.measure import Estimate, Timing
from eval.studies.output import GREY, change, chart, table

FORMS = {"unpruned": "all patches", "learned": "learned scorer", "random": "random patches (control)"}
"""What is compared, in the order of the tables, as people read it."""

_COLORS = {"unpruned": "#2c8f4e", "learned": "#d1495b", "random": GREY}
_DIRECTIONS = ("photo to caption", "caption to photo")


@dataclasses.dataclass(frozen=True)
class Row:
    """One form, all seeds together.

    Attributes:
      tokens: patches that go on after the choice.
      photo_flops, pair_flops: by formula, of one photo, and of one photo with a caption and their score.
      xla_flops: of one photo in the compiled program, by XLA's count.
      encode, train: time of the photos of a batch, and of a step of training.
      recall: by measure; `difference` to that of all patches, paired; `lossyness` is 1 - recall / that of all patches.
    """

    form: str
    tokens: int
    photo_flops: float
    pair_flops: float
    xla_flops: float
    encode: Timing
    train: Timing
    recall: Mapping[str, Estimate]
    difference: Mapping[str, Estimate]
    lossyness: Mapping[str, Estimate | None]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def tables(rows: Sequence[Row]) -> str:
    """What each form costs, what it finds, and the lossyness of each measure."""
    base = rows[0]
    head = ("model", "patches", "photo, MFLOPs", "pair, MFLOPs", "XLA's count", "encode 64, ms", "train step, ms")
    costs = [_costs(row, base) for row in rows if row.form != "random"]
    recalls = [(name, *(row.recall[name].percent() for row in rows)) for name in base.recall]
    others = rows[1:]
    losses = [
        (
            name,
            *(row.difference[name].percent(sign=True) for row in others),
            *(_text(row.lossyness[name]) for row in others),
        )
        for name in base.recall
    ]
    recall_head = ("recall, %", *(FORMS[row.form] for row in rows))
    loss_head = ("against all patches", *(f"{what}, {row.form}" for what in ("points", "lossyness") for row in others))
    return f"{table(head, costs)}\n{table(recall_head, recalls)}\n{table(loss_head, losses)}"


def _costs(row: Row, base: Row) -> tuple[str, ...]:
    counted = ("photo_flops", "pair_flops", "xla_flops")
    numbers = [
        f"{getattr(row, name) / 1e6:.1f}{_in_brackets(getattr(row, name) / getattr(base, name))}" for name in counted
    ]
    times = [
        f"{own.milliseconds()}{_in_brackets(own.ratio(other))}"
        for own, other in ((row.encode, base.encode), (row.train, base.train))
    ]
    return (FORMS[row.form], str(row.tokens), *numbers, *times)


def _text(lossyness: Estimate | None) -> str:
    return "undefined" if lossyness is None else lossyness.text()


def _in_brackets(ratio: float) -> str:
    return "" if ratio == 1 else f" [{change(ratio)}]"


def draw_chart(rows: Sequence[Row], path: Path, *, note: str) -> None:
    """Recall in both directions, and beside it the cost of choosing patches by that of all."""
    with chart(path, title="caption_alignment: patches chosen by a learned scorer", note=note, panels=3) as axes:
        for one, direction in zip(axes, _DIRECTIONS, strict=False):
            _draw_recall(one, rows, direction)
        _draw_cost(axes[2], rows)
        axes[0].legend(frameon=False, fontsize=8, loc="upper left")


def _draw_recall(axes: Any, rows: Sequence[Row], direction: str) -> None:
    names = [f"{direction}, recall@{k}" for k in TOP]
    for offset, row in zip((-0.26, 0, 0.26), rows, strict=True):
        own = [row.recall[name] for name in names]
        means = [100 * one.mean for one in own]
        bars = [[100 * (one.mean - one.low) for one in own], [100 * (one.high - one.mean) for one in own]]
        places = [i + offset for i in range(len(names))]
        label, color = FORMS[row.form], _COLORS[row.form]
        axes.bar(places, means, yerr=bars, capsize=2, width=0.24, color=color, label=label, error_kw={"elinewidth": 1})
    axes.set_ylim(0, 100)
    axes.set_xticks(range(len(TOP)), [f"recall@{k}" for k in TOP], fontsize=9)
    axes.set_title(f"{direction}, % (bars: 95 %)", loc="left", fontsize=10)


def _draw_cost(axes: Any, rows: Sequence[Row]) -> None:
    base, own = rows[0], next(row for row in rows if row.form == "learned")
    measures = {
        "FLOPs of\na photo": own.photo_flops / base.photo_flops,
        "FLOPs of\na pair": own.pair_flops / base.pair_flops,
        "XLA's count,\nphoto": own.xla_flops / base.xla_flops,
        "time to\nencode": own.encode.ratio(base.encode),
        "time of a\ntrain step": own.train.ratio(base.train),
    }
    shades = ["#8fa3b8"] * 3 + ["#d1495b"] * 2
    drawn = axes.bar(range(len(measures)), [100 * ratio for ratio in measures.values()], width=0.6, color=shades)
    axes.bar_label(drawn, fmt="%.0f", fontsize=8, padding=2)
    axes.axhline(100, color="#2c8f4e", linewidth=1)
    axes.set_ylim(0, 120 * max(1, *measures.values()))
    axes.set_xticks(range(len(measures)), list(measures), fontsize=7)
    axes.set_title("learned scorer: cost, % of all patches", loc="left", fontsize=10)
