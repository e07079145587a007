"""How sure a score is: standard errors, intervals, and differences of two runs over the same samples.

Questions about one picture stand or fall together, so errors are clustered by picture. Source: Miller, Adding Error
Bars to Evals, 2024 (arXiv 2411.00640).
"""

import dataclasses
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from vila_jax.errors import ConfigError
from vila_jax.exam.items import interval as wilson

__all__ = [
    "Difference",
    "bootstrap",
    "clustered_standard_error",
    "mean",
    "paired_difference",
    "pooled_standard_error",
    "standard_error",
    "wilson",
]

_LEVEL = 0.95
_DRAWS = 1000


@dataclasses.dataclass(frozen=True)
class Difference:
    """One run minus another over the same samples.

    Attributes:
      standard_error: of the mean difference, clustered where clusters were given.
      low, high: the 95 % interval by Student's distribution.
      p_value: of a difference at least as large where there is none.
      n: samples.
    """

    mean: float
    standard_error: float
    low: float
    high: float
    t: float
    p_value: float
    n: int


def mean(scores: Sequence[float]) -> float:
    """Arithmetic mean; NaN of nothing."""
    return math.fsum(scores) / len(scores) if len(scores) else math.nan


def standard_error(scores: Sequence[float]) -> float:
    """Of the mean of independent scores; NaN of fewer than two."""
    if len(scores) < 2:
        return math.nan
    return float(np.std(scores, ddof=1) / math.sqrt(len(scores)))


def clustered_standard_error(scores: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Of the mean of scores that depend on each other within clusters; NaN of fewer than two scores.

    The variance is that of independent scores plus the products of different scores of a cluster (Miller 2024, equation
    4); without clusters of more than one it is the standard error.
    """
    _same_length(scores, clusters)
    if len(scores) < 2:
        return math.nan
    centre, sums = mean(scores), dict.fromkeys(clusters, 0.0)
    for score, cluster in zip(scores, clusters, strict=True):
        sums[cluster] += score - centre
    within = math.fsum(total**2 for total in sums.values()) / len(scores) ** 2
    # The products hold every score with itself at weight 1 / n^2, where the standard error has 1 / (n (n - 1)).
    return math.sqrt(within + standard_error(scores) ** 2 / len(scores))


def pooled_standard_error(errors: Sequence[float], sizes: Sequence[int]) -> float:
    """Of the mean over the samples of several tasks together, from the standard errors of the tasks."""
    _same_length(errors, sizes)
    within = sum((n - 1) * error**2 * n for error, n in zip(errors, sizes, strict=True))
    return math.sqrt(within / (sum(sizes) - len(sizes)) / sum(sizes))


def bootstrap(
    items: Sequence[Any],
    clusters: Sequence[Hashable],
    statistic: Callable[[list[Any]], float],
    *,
    draws: int = _DRAWS,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95 % percentile interval of a statistic, clusters drawn again with replacement. Source: Efron, 1979.

    For scores that are no mean (F1, MME, BLEU): `statistic` is the headline of `Metric.combine` over marks.
    """
    _same_length(items, clusters)
    members: dict[Hashable, list[Any]] = {}
    for item, cluster in zip(items, clusters, strict=True):
        members.setdefault(cluster, []).append(item)
    groups, rng = list(members.values()), np.random.default_rng(seed)
    if not groups:
        return math.nan, math.nan
    values = [
        statistic([item for i in rng.integers(len(groups), size=len(groups)) for item in groups[i]])
        for _ in range(draws)
    ]
    low, high = np.quantile(values, ((1 - _LEVEL) / 2, (1 + _LEVEL) / 2))
    return float(low), float(high)


def paired_difference(
    scores: Sequence[float], baseline: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> Difference:
    """The mean of `scores` minus that of `baseline`, sample by sample, with Student's test.

    Args:
      clusters: where they are given, the error is clustered and the degrees of freedom are clusters less one.

    Raises:
      ConfigError: the runs have not the same number of samples, or fewer than two.
    """
    from scipy import special  # a dependency of JAX

    _same_length(scores, baseline)
    if len(scores) < 2:
        raise ConfigError("two samples at least are compared", where="paired_difference")
    apart = [own - other for own, other in zip(scores, baseline, strict=True)]
    error = standard_error(apart) if clusters is None else clustered_standard_error(apart, clusters)
    freedom = max(1, len(apart if clusters is None else set(clusters)) - 1)
    centre, reach = mean(apart), float(special.stdtrit(freedom, (1 + _LEVEL) / 2)) * error
    t = centre / error if error else (math.copysign(math.inf, centre) if centre else 0.0)
    p_value = float(2 * special.stdtr(freedom, -abs(t)))
    return Difference(centre, error, centre - reach, centre + reach, t, p_value, len(apart))


def _same_length(a: Sequence[Any], b: Sequence[Any]) -> None:
    if len(a) != len(b):
        fix = "Compare runs over the same samples, and give every sample its cluster."
        raise ConfigError(f"{len(a)} and {len(b)} values do not belong together", where="statistics", fix=fix)
