"""The results of an exam as rows of a table: one for every method and fraction of tokens, its seeds taken together."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vila_jax.exam.examiner import Method, Setting
from vila_jax.exam.items import GROUPS, Reply, Score, interval, score
from vila_jax.scenes.world import KINDS

LABELS: dict[Method, str] = {
    "full": "all tokens",
    "hired": "HiRED",
    "hired-code": "HiRED, published code",
    "random": "random tokens",
    "downsample": "smaller picture",
    "blank": "blank picture (control)",
}
"""Methods in the order of the tables, as people read them."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One method at one fraction.

    Attributes:
      tokens: visual tokens of a picture, mean over pictures.
      scores: of every group of questions and of every kind, one for each seed.
    """

    method: Method
    keep: float
    tokens: float
    scores: Mapping[str, Sequence[Score]]

    @property
    def label(self) -> str:
        """Name of the method, with the fraction where there is one."""
        return LABELS[self.method] if self.keep == 1 else f"{LABELS[self.method]}, {100 * self.keep:g} %"

    @property
    def seeds(self) -> int:
        return len(self.scores["all"])

    def accuracy(self, group: str = "all") -> float:
        """Share of right answers, mean over the seeds; NaN where nothing was asked, as are the next two."""
        return statistics.fmean(one.accuracy for one in self.scores[group])

    def deviation(self, group: str = "all") -> float | None:
        """Standard deviation of the accuracy over the seeds; None when there is one seed."""
        values = np.array([one.accuracy for one in self.scores[group]])
        return float(values.std(ddof=1)) if len(values) > 1 else None

    def interval(self, group: str = "all") -> tuple[float, float]:
        """The 95 % interval of the accuracy over the scenes, which all seeds share."""
        return interval(self.accuracy(group), self.scores[group][0].asked)

    def to_json(self) -> dict[str, Any]:
        """Plain data; accuracies are fractions of 1, None where nothing was asked."""
        return {
            "method": self.method,
            "keep": self.keep,
            "seeds": self.seeds,
            "tokens": self.tokens,
            "accuracy": {group: self._group_json(group) for group in self.scores},
        }

    def _group_json(self, group: str) -> dict[str, Any]:
        low, high = self.interval(group)
        right = [one.right for one in self.scores[group]]
        numbers = {"mean": self.accuracy(group), "low": low, "high": high, "sd_over_seeds": self.deviation(group)}
        known = {name: None if value is None or math.isnan(value) else value for name, value in numbers.items()}
        return known | {"right": right, "asked": self.scores[group][0].asked}


def tabulate(replies: Mapping[Setting, Sequence[Reply]]) -> list[Row]:
    """Rows in the order of `LABELS`, larger fractions first. All settings must have answered the same items."""
    found: dict[tuple[Method, float], list[Sequence[Reply]]] = {}
    for setting, own in replies.items():
        found.setdefault((setting.method, setting.keep), []).append(own)
    order = sorted(found, key=lambda key: (list(LABELS).index(key[0]), -key[1]))
    return [_row(method, keep, found[method, keep]) for method, keep in order]


def _row(method: Method, keep: float, runs: Sequence[Sequence[Reply]]) -> Row:
    groups = GROUPS | {kind: (kind,) for kind in KINDS}
    scores = {name: [score(run, kinds) for run in runs] for name, kinds in groups.items()}
    return Row(method, keep, statistics.fmean(reply.tokens for reply in runs[0]), scores)


def markdown(rows: Sequence[Row]) -> str:
    """Two tables: all rows by groups of questions, and by kind what all tokens, a fifth of them and none achieve."""
    head = "| pictures shown as | tokens | all questions | coarse | fine |\n|:--|--:|--:|--:|--:|\n"
    lines = [
        f"| {row.label} | {row.tokens:.0f} | {' | '.join(_cell(row, group) for group in GROUPS)} |" for row in rows
    ]
    chosen = [
        row for row in rows if row.method in ("full", "blank") or (row.keep == 0.2 and row.method != "hired-code")
    ]
    kinds_head = f"| kind | asked | {' | '.join(row.label for row in chosen)} |\n|:--|--:|{'--:|' * len(chosen)}\n"
    kinds = []
    for kind in KINDS:
        cells = [f"{100 * row.accuracy(kind):.1f}" for row in chosen]
        kinds.append(f"| {kind} | {rows[0].scores[kind][0].asked} | {' | '.join(cells)} |")
    return head + "\n".join(lines) + "\n\n" + kinds_head + "\n".join(kinds) + "\n"


def _cell(row: Row, group: str) -> str:
    """`83.1 (80.7 to 85.3)`, with `± 0.4` over the seeds where there are several."""
    low, high = (100 * bound for bound in row.interval(group))
    deviation = row.deviation(group)
    spread = "" if deviation is None else f" ± {100 * deviation:.1f}"
    return f"{100 * row.accuracy(group):.1f}{spread} ({low:.1f} to {high:.1f})"
