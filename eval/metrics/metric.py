"""What a metric is: a mark for every answered sample, and the numbers that the marks of a task add up to.

The two halves are apart because an interval is found by drawing samples again and again: marks are made once, however
long that takes, and combining them is cheap.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from vila_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Answered:
    """A sample and what the model said to it: all that a metric sees.

    Attributes:
      prediction: the answer as the model gave it; None where there is none, because the sample or the run failed. Such
        a sample stays in the denominator and is wrong.
      references: right answers.
      extras: what else the metric reads; its page says what.
    """

    id: str
    prediction: str | None
    references: Sequence[str] = ()
    extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Mark(NamedTuple):
    """What one sample contributes.

    Attributes:
      score: of the sample alone, from 0 to 1 except for CIDEr, which is from 0 to 10; NaN where it counts nowhere.
      parts: what the metric combines besides; its page says what. Empty for a sample that could not be read, which
        counts as wrong where the headline is a mean.
    """

    score: float
    parts: tuple[Any, ...] = ()


Marks = Callable[[Sequence[Answered], str], list[Mark]]
Combine = Callable[[Sequence[Mark]], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric, in one or several published variants.

    Attributes:
      variants: names of reference implementations that disagree on some answers. A result is to carry its variant.
      default: the one that published numbers are mostly made with.
      headline: of the numbers that `combine` returns, the one that is quoted.
      scale: what tables multiply the headline by.
      marks: of answered samples and a variant, one `Mark` for each, in order.
      combine: marks to named numbers. What it returns for some of the marks is what the task would be with these
        samples alone, provided that samples of one picture stay together.
    """

    name: str
    variants: tuple[str, ...]
    default: str
    headline: str
    scale: float
    marks: Marks
    combine: Combine

    def variant(self, name: str | None) -> str:
        """The variant of this name, the default without one.

        Raises:
          ConfigError: there is none.
        """
        if name is not None and name not in self.variants:
            fix = f"One of: {', '.join(self.variants)}."
            raise ConfigError(f"the metric {self.name} has no variant {name!r}", where="variant", fix=fix)
        return name or self.default

    def score(self, sample: Answered, variant: str | None = None) -> float:
        """The score of one sample taken alone."""
        return self.marks([sample], self.variant(variant))[0].score

    def aggregate(self, samples: Sequence[Answered], variant: str | None = None) -> dict[str, float]:
        """The numbers of all samples."""
        return self.combine(self.marks(samples, self.variant(variant)))


def mean(marks: Sequence[Mark]) -> float:
    """Mean of the scores that count; NaN where none does."""
    scores = [mark.score for mark in marks if not math.isnan(mark.score)]
    return math.fsum(scores) / len(scores) if scores else math.nan


def mean_metric(
    name: str, variants: Mapping[str, Callable[[Answered, str], float]], *, groups: Sequence[str] = ()
) -> Metric:
    """A metric that is the mean of what every sample scores alone, the `accuracy`, in per cent in tables.

    Args:
      variants: scores of a sample and its prediction, by variant; the first is the default.
      groups: extras after whose values accuracies are given too, as `GROUP/VALUE`.
    """

    def marks(samples: Sequence[Answered], variant: str) -> list[Mark]:
        score = variants[variant]
        return [
            Mark(
                0.0 if sample.prediction is None else float(score(sample, sample.prediction)),
                tuple(f"{group}/{sample.extras[group]}" for group in groups if sample.extras.get(group)),
            )
            for sample in samples
        ]

    def combine(marks: Sequence[Mark]) -> dict[str, float]:
        found = sorted({part for mark in marks for part in mark.parts})
        own = {part: mean([mark for mark in marks if part in mark.parts]) for part in found}
        return {"accuracy": mean(marks), **own}

    return Metric(name, tuple(variants), next(iter(variants)), "accuracy", 100.0, marks, combine)
