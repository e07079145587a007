"""The rows of `vila-jax bench budgets`: what was measured of every method at every fraction, as plain data."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from vila_jax.budgets import METHODS, Budget
from vila_jax.exam.items import GROUPS, Score, interval

FULL = "all tokens"
"""The method of the row without a budget."""

_Z = 1.959964  # standard deviations on either side that hold 95 % of a normal distribution


@dataclasses.dataclass(frozen=True)
class Case:
    """What a row measures.

    Attributes:
      method: as it was asked for: a name of the registry, perhaps with options, or a whole budget.
      keep: the fraction; None without a budget, and of a whole budget.
      budget: the spec; None without a budget.
    """

    method: str
    keep: float | None
    budget: str | None

    @property
    def name(self) -> str:
        return self.budget or self.method


def make_cases(methods: Sequence[str] | None, keeps: Iterable[float]) -> list[Case]:
    """All tokens, then every method at every fraction.

    Args:
      methods: `NAME[,OPTION=VALUE...]`, which is combined with every fraction, or a whole budget such as
        `hired:0.4+fastv:0.5`, which is one case; None are all methods of the registry.

    Raises:
      BudgetError: what was asked for is no budget. (Whether a model can have it is said by its row.)
    """
    keeps, cases = list(keeps), [Case(FULL, None, None)]
    if methods is None:
        methods = list({method: name for name, method in reversed(METHODS.items())}.values())[::-1]  # aliases once
    for method in dict.fromkeys(methods):
        name, comma, options = method.partition(",")
        if ":" in method:
            cases.append(Case(method, None, method))
        else:
            cases += [Case(method, keep, f"{name}:{keep}{comma}{options}") for keep in keeps]
    for case in cases[1:]:
        Budget.parse(case.budget or "")
    return cases


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median, least and greatest of repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a picture costs; of batches the share of one row, but for times, which a batch has in common.

    Attributes:
      tokens_mean, tokens_max: visual tokens that the decoder is given, of the pictures that were timed.
      tower_flops: of the vision tower, with what the budget reads of it.
      selector_flops: of the choice itself, `projector_flops` of projecting what is chosen.
      prefill_flops: of the decoder over the prompt, `decode_flops` over one further token.
      kv_bytes: of the cache as it lies in memory, padded to its static length.
      compile_time: seconds to compile all programs of the request from nothing.
      tower, selector, prefill: seconds of the programs by themselves; `selector` is None where none runs by itself.
      first_token: seconds of wall time from opened pictures and prompt to the first token.
      decode_rate: tokens per second, of all rows of the batch together, after the first.
    """

    tokens_mean: float
    tokens_max: int
    tower_flops: float
    selector_flops: float
    projector_flops: float
    prefill_flops: float
    decode_flops: float
    kv_bytes: float
    compile_time: float
    tower: Spread
    selector: Spread | None
    prefill: Spread
    first_token: Spread
    decode_rate: Spread

    @property
    def total_flops(self) -> float:
        """Up to the first token."""
        return self.tower_flops + self.selector_flops + self.projector_flops + self.prefill_flops


@dataclasses.dataclass(frozen=True)
class Marks:
    """How an exam went.

    Attributes:
      right: a `1` or `0` for every item, in the order of the exam.
      tokens_mean, tokens_max: visual tokens of its pictures.
    """

    right: str
    tokens_mean: float
    tokens_max: int


@dataclasses.dataclass(frozen=True)
class Row:
    """A case, and what was found; `refused` is the reason why the model cannot have this budget."""

    case: Case
    refused: str | None = None
    cost: Cost | None = None
    marks: Marks | None = None

    @property
    def tokens(self) -> tuple[float, int] | None:
        """Mean and maximum per picture: of the exam if there was one, else of the timed pictures."""
        known = self.marks or self.cost
        return None if known is None else (known.tokens_mean, known.tokens_max)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Row":
        return cls(
            Case(**data["case"]),
            data["refused"],
            None if data["cost"] is None else _cost(data["cost"]),
            None if data["marks"] is None else Marks(**data["marks"]),
        )


def _cost(data: dict[str, Any]) -> Cost:
    spreads = {name: Spread(**value) for name, value in data.items() if isinstance(value, dict)}
    return Cost(**{**data, **spreads})


@dataclasses.dataclass(frozen=True)
class Bench:
    """All rows, with what they have in common.

    Attributes:
      settings: model, sizes, versions and the like.
      kinds: the kind of every question of the exam; empty without one.
    """

    settings: dict[str, Any]
    kinds: tuple[str, ...]
    rows: list[Row]

    def to_json(self) -> dict[str, Any]:
        return {"settings": self.settings, "kinds": list(self.kinds), "rows": [row.to_json() for row in self.rows]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Bench":
        return cls(data["settings"], tuple(data["kinds"]), [Row.from_json(row) for row in data["rows"]])

    def score(self, row: Row, group: str = "all") -> Score | None:
        """Right answers among the questions of a group (see `vila_jax.exam.items.GROUPS`); None without an exam."""
        if row.marks is None:
            return None
        marks = self._of_group(row.marks.right, group)
        return Score(sum(marks), len(marks))

    def difference(self, row: Row, other: Row, group: str = "all") -> tuple[float, float, float]:
        """Accuracy of `row` minus that of `other` on the same questions, with its 95 % interval.

        Source: D. G. Bonett and R. M. Price, J. Educ. Behav. Stat. 37 (2012), the adjusted Wald interval.
        """
        assert row.marks is not None and other.marks is not None
        own, others = self._of_group(row.marks.right, group), self._of_group(other.marks.right, group)
        won = sum(a > b for a, b in zip(own, others, strict=True))
        lost = sum(a < b for a, b in zip(own, others, strict=True))
        gain, loss = (won + 1) / (len(own) + 2), (lost + 1) / (len(own) + 2)
        reach = _Z * math.sqrt((gain + loss - (gain - loss) ** 2) / (len(own) + 2))
        return (won - lost) / len(own), gain - loss - reach, gain - loss + reach

    def bounds(self, row: Row, group: str = "all") -> tuple[float, float]:
        """The 95 % interval of an accuracy over the scenes."""
        score = self.score(row, group)
        return (math.nan, math.nan) if score is None else interval(score.accuracy, score.asked)

    def _of_group(self, right: str, group: str) -> list[int]:
        kinds = GROUPS[group]
        return [int(mark) for mark, kind in zip(right, self.kinds, strict=True) if kind in kinds]
