"""Spreads of repeats, and the turns in which works are timed."""

import pytest

from vila_jax.bench import timing
from vila_jax.bench.timing import Times


def test_percentiles():
    assert Times.of([float(i) for i in range(101)]) == Times(50.0, 10.0, 90.0, 101)
    assert Times.of([3.0]) == Times(3.0, 3.0, 3.0, 1)


def test_works_take_turns_and_the_first_does_not_count():
    turns, seconds = [], iter([9.0, 9.0, 1.0, 2.0, 3.0, 4.0])

    def work(name):
        turns.append(name)
        return {"clock": next(seconds)}

    found = timing.interleaved({"a": lambda: work("a"), "b": lambda: work("b")}, 2)
    assert turns == ["a", "b"] * 3
    assert found["a"]["clock"].median == 2.0 and found["b"]["clock"].median == 3.0


@pytest.mark.parametrize(("seconds", "expected"), [(6.0, timing.FEWEST), (0.5, 20)])
def test_long_works_are_repeated_less_often(monkeypatch, seconds, expected):
    now = iter(range(10**6))
    monkeypatch.setattr(timing, "perf_counter", lambda: seconds * timing.FEWEST * next(now))
    assert timing.measure(lambda: {"clock": 1.0})["clock"].repeats == expected
