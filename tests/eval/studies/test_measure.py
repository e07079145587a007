"""Intervals and times."""

import numpy as np
import pytest

from eval.studies.measure import Estimate, Timing, bootstrap, lossyness, paired, time_side_by_side


def test_the_interval_of_one_seed_is_that_of_a_mean():
    items = (np.random.default_rng(0).random((1, 4000)) < 0.8).astype(float)
    found = bootstrap(items)
    error = 1.96 * items.std() / np.sqrt(items.size)  # the normal approximation
    assert found.mean == items.mean()
    np.testing.assert_allclose([found.low, found.high], [found.mean - error, found.mean + error], atol=0.1 * error)


def test_seeds_that_differ_widen_the_interval():
    alike = np.tile([0.0, 1.0], (4, 500))
    apart = np.tile([[0.0], [0.0], [1.0], [1.0]], (1, 1000))
    assert bootstrap(apart).high - bootstrap(apart).low > 5 * (bootstrap(alike).high - bootstrap(alike).low)


def test_pairs_are_narrower_than_their_parts():
    rng = np.random.default_rng(0)
    base = rng.random((3, 500))
    own = base + 0.1
    found = paired(own, base)
    np.testing.assert_allclose([found.mean, found.low, found.high], 0.1)
    np.testing.assert_allclose(lossyness(0.9 * base, base).low, 0.1)
    assert lossyness(base, base) == Estimate(0, 0, 0)
    assert lossyness(own, base).high < 0 and lossyness(own, 0 * base) is None


def test_estimates_are_printed_in_per_cent():
    one = Estimate(0.931, 0.92, 0.942)
    assert one.percent() == "93.1 (92.0 to 94.2)" and one.percent(sign=True) == "+93.1 (+92.0 to +94.2)"
    assert one.text() == "0.931 (0.920 to 0.942)"
    assert one.holds(0.92) and not one.holds(0.943)


def test_times_are_taken_in_turn_and_compared_round_by_round():
    order = []
    found = time_side_by_side({name: lambda name=name: order.append(name) for name in "ab"}, rounds=2)
    assert order == list("ab" * 3) and len(found["a"].rounds) == 2  # the first call of each compiles
    slow, fast = Timing((0.4, 4.0, 0.6)), Timing((0.2, 2.0, 0.3))
    assert slow.ratio(fast) == pytest.approx(2) and slow.median == 0.6
    assert fast.milliseconds() == "300.0 (250.0 to 1150.0)"
