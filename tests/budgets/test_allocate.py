"""Largest remainders, against exact rational arithmetic."""

from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vila_jax.budgets.allocate import largest_remainder

S = 5


def shared_out(shares, total, caps):
    shares, caps = jnp.asarray(shares, jnp.float32), jnp.asarray(caps, jnp.int32)
    return largest_remainder(shares, jnp.asarray(total, jnp.int32), caps)


def exact_quotas(shares, total, caps):
    """What each entry is owed, entries closed at their caps one round after another."""
    closed = [cap == 0 for cap in caps]
    while True:
        left = total - sum(cap for cap, c in zip(caps, closed, strict=True) if c)
        open_shares = [Fraction(0) if c else Fraction(s) for s, c in zip(shares, closed, strict=True)]
        if not any(open_shares):
            open_shares = [Fraction(not c) for c in closed]
        norm = sum(open_shares) or Fraction(1)
        owed = [Fraction(cap) if c else left * s / norm for s, cap, c in zip(open_shares, caps, closed, strict=True)]
        again = [c or o >= cap for o, cap, c in zip(owed, caps, closed, strict=True)]
        if again == closed:
            return owed
        closed = again


@settings(max_examples=150, deadline=None)
@given(
    shares=st.lists(st.integers(0, 50), min_size=S, max_size=S),
    total=st.integers(0, 400),
    caps=st.lists(st.integers(0, 100), min_size=S, max_size=S),
)
def test_against_fractions(shares, total, caps):
    result = shared_out(shares, total, caps).tolist()
    total = min(total, sum(caps))
    owed = exact_quotas(shares, total, caps)
    assert sum(result) == total
    assert all(0 <= r <= cap for r, cap in zip(result, caps, strict=True))
    assert all(int(o) <= r <= int(o) + (o != int(o)) for r, o in zip(result, owed, strict=True))
    up = [o - int(o) for r, o in zip(result, owed, strict=True) if r > o]
    down = [o - int(o) for r, o in zip(result, owed, strict=True) if r < o]
    assert not up or not down or min(up) > max(down) - Fraction(1, 10_000)  # float32 may take remainders for equal


@settings(max_examples=100, deadline=None)
@given(
    shares=st.lists(st.floats(width=32), min_size=S, max_size=S),
    total=st.integers(0, 5000),
    caps=st.lists(st.integers(0, 729), min_size=S, max_size=S),
)
def test_exact_sum_for_any_shares(shares, total, caps):
    result = np.asarray(shared_out(shares, total, caps))
    assert result.sum() == min(total, sum(caps))
    assert (result >= 0).all() and (result <= caps).all()


@pytest.mark.parametrize(
    ("shares", "total", "caps", "expected"),
    [
        ([1, 1, 1], 10, [9, 9, 9], [4, 3, 3]),  # a tie goes to the lowest index
        ([0, 0, 0], 7, [9, 9, 9], [3, 2, 2]),  # nothing to go by: even
        ([np.nan, np.inf, -1], 7, [9, 9, 9], [3, 2, 2]),
        ([3, 1, 0], 8, [9, 9, 9], [6, 2, 0]),
        ([3, 1, 0], 12, [3, 4, 9], [3, 4, 5]),  # the overflow reaches the entry without a share last
        ([8, 1, 1], 10, [4, 9, 9], [4, 3, 3]),
        ([1, 2, 3], 99, [4, 5, 6], [4, 5, 6]),
        ([3e38, 3e38, 3e38], 6, [9, 9, 9], [2, 2, 2]),
        ([1, 1, 1], 0, [9, 9, 9], [0, 0, 0]),
        ([1, 1, 1], 5, [0, 0, 0], [0, 0, 0]),
    ],
)
def test_by_hand(shares, total, caps, expected):
    assert shared_out(shares, total, caps).tolist() == expected


def test_rows_are_independent():
    rng = np.random.default_rng(0)
    shares, caps = rng.random((4, S), np.float32), rng.integers(0, 60, (4, S))
    total = rng.integers(0, 300, 4)
    together = shared_out(shares, total, caps)
    for row in range(4):
        assert together[row].tolist() == shared_out(shares[row], total[row], caps[row]).tolist()
