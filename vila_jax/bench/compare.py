"""Two results beside each other: which numbers differ by more than repeats do."""

import dataclasses
import json
from typing import Any

from vila_jax.bench.results import Results, Row
from vila_jax.bench.timing import Times
from vila_jax.errors import VilaError

_SETTINGS = ("device", "machine", "versions")


@dataclasses.dataclass(frozen=True)
class Change:
    """One clock of one row in both results.

    Attributes:
      ratio: new median over old: less than 1 is faster.
      verdict: `faster` or `slower` where the spreads (10th to 90th percentile) do not meet, else `same`.
    """

    row: str
    clock: str
    old: Times
    new: Times

    @property
    def ratio(self) -> float:
        return self.new.median / self.old.median

    @property
    def verdict(self) -> str:
        if self.new.p90 < self.old.p10:
            return "faster"
        return "slower" if self.new.p10 > self.old.p90 else "same"

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"ratio": self.ratio, "verdict": self.verdict}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What two results have in common, and what not.

    Attributes:
      changes: of clocks that both have.
      missing: rows of one of them alone.
      differing: settings in which the machines or versions differ: ratios may then say nothing about the code.
    """

    changes: list[Change]
    missing: list[str]
    differing: list[str]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        changes = [change.to_json() for change in self.changes]
        return {"changes": changes, "missing": self.missing, "differing": self.differing}


def compare(old: Results, new: Results) -> Comparison:
    """Matches rows by bench and case.

    Raises:
      VilaError: there is no row in common.
    """
    before, after = _by_case(old), _by_case(new)
    changes = [
        Change(row.title, clock, before[key].times[clock], times)
        for key, row in after.items()
        if key in before
        for clock, times in row.times.items()
        if clock in before[key].times
    ]
    if not changes:
        fix = "Compare results of the same commands."
        raise VilaError("the two results have no row in common", fix=fix)
    missing = [(before | after)[key].title for key in before.keys() ^ after.keys()]
    differing = [name for name in _SETTINGS if old.settings.get(name) != new.settings.get(name)]
    return Comparison(changes, sorted(missing), differing)


def _by_case(results: Results) -> dict[str, Row]:
    """Rows that were measured, by what they measure."""
    return {json.dumps([row.bench, row.case], sort_keys=True): row for row in results.rows if row.refused is None}
