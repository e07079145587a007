"""Confidence intervals by bootstrap, and times measured side by side."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from vila_jax.errors import VilaError


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether a value lies within the interval."""
        return self.low <= value <= self.high

    def percent(self, *, sign: bool = False) -> str:
        """`93.1 (92.0 to 94.2)`; with `sign`, a plus before what is positive."""
        mean, low, high = (f"{100 * value:{'+' if sign else ''}.1f}" for value in (self.mean, self.low, self.high))
        return f"{mean} ({low} to {high})"

    def text(self, *, sign: bool = False) -> str:
        """`0.031 (0.012 to 0.049)`; with `sign`, a plus before what is positive."""
        mean, low, high = (f"{value:{'+' if sign else ''}.3f}" for value in (self.mean, self.low, self.high))
        return f"{mean} ({low} to {high})"


def bootstrap(
    *samples: Float[np.ndarray, "S N"], statistic: Callable[..., float] = float, draws: int = 2000
) -> Estimate:
    """A statistic of the means of measures over training seeds and test items, with its percentile interval.

    Seeds and items are both drawn again, with replacement, so that the interval covers another training run as well as
    another test set. Several measures are drawn alike, so that intervals of differences and ratios are paired. Three
    seeds say little about other seeds: the interval is then too narrow rather than too wide.

    Args:
      samples: of each measure one value for each seed and item; all have the same seeds and items.
      statistic: of the means of the measures; by default the one mean itself.
      draws: bootstrap samples.
    """
    rng = np.random.default_rng(0)
    seeds, items = samples[0].shape
    values = np.empty(draws)
    for i in range(draws):
        drawn = np.ix_(rng.integers(seeds, size=seeds), rng.integers(items, size=items))
        values[i] = statistic(*(own[drawn].mean() for own in samples))
    low, high = np.quantile(values, (0.025, 0.975))
    return Estimate(float(statistic(*(own.mean() for own in samples))), float(low), float(high))


def paired(own: Float[np.ndarray, "S N"], baseline: Float[np.ndarray, "S N"]) -> Estimate:
    """The difference of two means, seed by seed and item by item."""
    return bootstrap(own - baseline)


def lossyness(own: Float[np.ndarray, "S N"], baseline: Float[np.ndarray, "S N"]) -> Estimate | None:
    """`1 - own / baseline` of two means, paired: below zero where the optimised model is the better one.

    None where the baseline is zero, or may well be: where it is zero in one of the bootstrap samples.
    """
    found = bootstrap(
        own, baseline, statistic=lambda own, baseline: float(1 - own / baseline) if baseline else math.nan
    )
    return None if math.isnan(found.mean + found.low + found.high) else found


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one call in each round."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def quartiles(self) -> tuple[float, float]:
        low, high = np.quantile(self.rounds, (0.25, 0.75))
        return float(low), float(high)

    def ratio(self, baseline: "Timing") -> float:
        """Median over the rounds of this time by the baseline's of the same round: other load hits both alike."""
        return statistics.median(own / other for own, other in zip(self.rounds, baseline.rounds, strict=True))

    def milliseconds(self) -> str:
        """`12.3 (12.1 to 12.9)`: the median and the quartiles."""
        return f"{1e3 * self.median:.1f} ({1e3 * self.quartiles[0]:.1f} to {1e3 * self.quartiles[1]:.1f})"

    def to_json(self) -> list[float]:
        return list(self.rounds)


def time_side_by_side(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Timing]:
    """Times every call once a round, in turn, after one call each that compiles. Waits for the arrays returned."""
    for call in calls.values():
        jax.block_until_ready(call())
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(own)) for name, own in seconds.items()}


def xla_flops(function: Callable[..., Any], *args: Any) -> float:
    """Operations of the compiled program by XLA's own count, which holds norms, softmax and activations as well."""
    analysis = jax.jit(function).lower(*args).compile().cost_analysis()
    if analysis is None:
        raise VilaError("XLA does not count the operations of its programs on this device", fix="Use a CPU.")
    return float(analysis["flops"])
