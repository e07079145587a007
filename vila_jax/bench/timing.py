"""Clocks of a bench: repeats of the same work, and what they tell."""

import dataclasses
from collections.abc import Callable
from time import perf_counter

import numpy as np

REPEATS = 20
"""Repeats that a number rests on, unless a single one takes long."""

LONG, FEWEST = 5.0, 5
"""What takes more seconds is repeated only so many times; its `Times` say so."""

Clocks = Callable[[], dict[str, float]]
"""Does the work once and waits for its results; returns the seconds of its parts by name."""


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of repeats.

    Attributes:
      median, p10, p90: the 50th, 10th and 90th percentile.
      repeats: how many there were.
    """

    median: float
    p10: float
    p90: float
    repeats: int

    @classmethod
    def of(cls, seconds: list[float]) -> "Times":
        """Of one repeat at least; percentiles between two repeats are interpolated."""
        p10, median, p90 = (float(value) for value in np.percentile(seconds, (10, 50, 90)))
        return cls(median, p10, p90, len(seconds))


def measure(work: Clocks, repeats: int = REPEATS) -> dict[str, Times]:
    """Times some work after a first time that compiles and is not counted."""
    return interleaved({"": work}, repeats)[""]


def interleaved(works: dict[str, Clocks], repeats: int = REPEATS) -> dict[str, dict[str, Times]]:
    """Times several works in turns, so that a machine's moods meet all of them alike; each is warmed up first.

    Returns:
      For each work its clocks by name.
    """
    for work in works.values():
        work()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in works}
    start = perf_counter()
    for turn in range(1, repeats + 1):
        for name, work in works.items():
            found[name].append(work())
        if turn == FEWEST and (perf_counter() - start) / turn / len(works) > LONG:
            break
    return {
        name: {clock: Times.of([turn[clock] for turn in turns]) for clock in turns[0]} for name, turns in found.items()
    }
