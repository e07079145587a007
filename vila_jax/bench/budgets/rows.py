"""What is measured of every method at every KEEP, as plain data."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from vila_jax.budgets import METHODS, Budget, Step
from vila_jax.exam.items import GROUPS, Score, interval

ALL_TOKENS = "all tokens"
"""The method of the row without a budget."""

BASELINES = ("random", "uniform", "pool", "downsample")
"""Methods that look at nothing: what any other has to beat."""

_Z = 1.959964  # standard deviations on either side that hold 95 % of a normal distribution


@dataclasses.dataclass(frozen=True)
class Case:
    """What a row measures.

    Attributes:
      method: as it was asked for: a name of the registry, perhaps with options, or a whole budget.
      keep: what is kept, a fraction or a number of tokens; None without a budget, and of a whole budget.
      budget: the spec; None without a budget.
    """

    method: str
    keep: float | int | None
    budget: str | None

    @property
    def name(self) -> str:
        return self.budget or self.method


def make_cases(methods: Sequence[str] | None, keeps: Iterable[str]) -> list[Case]:
    """All tokens, then every method at every KEEP.

    Args:
      methods: `NAME[,OPTION=VALUE...]`, which is combined with every KEEP, or a whole budget such as
        `hired:0.4+fastv:0.5`, which is one case; None are all methods of the registry.
      keeps: as in a spec: `0.4`, `40%`, `72`.

    Raises:
      BudgetError: what was asked for is no budget. (Whether a model can have it is said by its row.)
    """
    keeps, cases = list(keeps), [Case(ALL_TOKENS, None, None)]
    for method in METHODS if methods is None else methods:
        if ":" in method:
            cases.append(Case(method, None, str(Budget.parse(method))))
            continue
        name, comma, options = method.partition(",")
        for keep in keeps:
            step = Step.parse(f"{name}:{keep}{comma}{options}")
            cases.append(Case(method, step.keep, str(step)))
    unique: dict[str, Case] = {}
    for case in cases:
        unique.setdefault(case.name, case)
    return list(unique.values())


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
    """What a request costs: of counts the share of one row of its batch; times are those of the whole batch.

    Attributes:
      tokens_mean, tokens_max: visual tokens of the pictures that were timed.
      tower_flops: of the vision tower, with what the budget reads of it.
      selector_flops: of the choice itself, `projector_flops` of merging and projecting what is chosen.
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

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Cost":
        spreads = {name: Spread(**value) for name, value in data.items() if isinstance(value, dict)}
        return cls(**{**data, **spreads})


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

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Row":
        cost, marks = data["cost"], data["marks"]
        return cls(
            Case(**data["case"]),
            data["refused"],
            None if cost is None else Cost.from_json(cost),
            None if marks is None else Marks(**marks),
        )


@dataclasses.dataclass(frozen=True)
class Difference:
    """Accuracy of one row minus that of another on the same questions, with its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def sure(self) -> int:
        """1 where it is better, -1 where it is worse, 0 where the interval holds both."""
        return (self.low > 0) - (self.high < 0)


@dataclasses.dataclass(frozen=True)
class Bench:
    """All rows, with what they have in common.

    Attributes:
      settings: model, sizes, versions and the like; numbers made with other settings are not comparable.
      kinds: the kind of every question of the exam; empty without one.
    """

    settings: dict[str, Any]
    kinds: tuple[str, ...]
    rows: list[Row]

    def to_json(self) -> dict[str, Any]:
        """Plain data: seconds, FLOPs, bytes and fractions of 1. What is derived from it stands beside it."""
        rows = [dataclasses.asdict(row) | {"accuracy": self._accuracies(row)} for row in self.rows]
        return {"settings": self.settings, "kinds": list(self.kinds), "rows": rows}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Bench":
        return cls(data["settings"], tuple(data["kinds"]), [Row.from_json(row) for row in data["rows"]])

    def score(self, row: Row, group: str = "all") -> Score | None:
        """Right answers among the questions of a group (see `vila_jax.exam.items.GROUPS`); None without an exam."""
        if row.marks is None:
            return None
        marks = self._of_group(row.marks.right, group)
        return Score(sum(marks), len(marks))

    def bounds(self, row: Row, group: str = "all") -> tuple[float, float]:
        """The 95 % interval of an accuracy over the scenes; NaN without an exam."""
        score = self.score(row, group)
        return (math.nan, math.nan) if score is None else interval(score.accuracy, score.asked)

    def difference(self, row: Row, other: Row, group: str = "all") -> Difference:
        """Accuracy of `row` minus that of `other`; both took the exam.

        Source: D. G. Bonett and R. M. Price, J. Educ. Behav. Stat. 37 (2012): the adjusted Wald interval for paired
        proportions.
        """
        assert row.marks is not None and other.marks is not None
        own, others = self._of_group(row.marks.right, group), self._of_group(other.marks.right, group)
        won = sum(a > b for a, b in zip(own, others, strict=True))
        lost = sum(a < b for a, b in zip(own, others, strict=True))
        gain, loss = (won + 1) / (len(own) + 2), (lost + 1) / (len(own) + 2)
        reach = _Z * math.sqrt((gain + loss - (gain - loss) ** 2) / (len(own) + 2))
        return Difference((won - lost) / max(1, len(own)), gain - loss - reach, gain - loss + reach)

    def _of_group(self, right: str, group: str) -> list[int]:
        kinds = GROUPS[group]
        return [int(mark) for mark, kind in zip(right, self.kinds, strict=True) if kind in kinds]

    def _accuracies(self, row: Row) -> dict[str, Any] | None:
        if row.marks is None:
            return None
        found = {}
        for group in GROUPS:
            score = self.score(row, group)
            if score is not None and score.asked:
                low, high = self.bounds(row, group)
                found[group] = {"right": score.right, "asked": score.asked, "low": low, "high": high}
        return found
