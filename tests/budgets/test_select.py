"""Top-k under counts known only on the device, and packing into static slots."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vila_jax.budgets.select import compact, keep_top

ODD = [float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1.0, 1.0, -3.5, 1e-30]
IMAGES, TILES, PATCHES, SLOTS = 2, 3, 7, 9


def sorted_top(scores, candidates, count):
    """The same in plain Python: best first, NaN as -inf, the lowest index first among equals."""
    rank = {i: -np.inf if np.isnan(s) else float(s) for i, s in enumerate(scores)}
    best = sorted((i for i in rank if candidates[i]), key=lambda i: (-rank[i], i))
    return set(best[:count])


@st.composite
def cases(draw):
    shape = (IMAGES, TILES, PATCHES)
    size = int(np.prod(shape))
    scores = draw(st.lists(st.sampled_from(ODD) | st.floats(width=32), min_size=size, max_size=size))
    candidates = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    counts = draw(st.lists(st.integers(0, PATCHES + 2), min_size=IMAGES * TILES, max_size=IMAGES * TILES))
    return (
        np.array(scores, np.float32).reshape(shape),
        np.array(candidates).reshape(shape),
        np.array(counts, np.int32).reshape(shape[:2]),
    )


@settings(max_examples=60, deadline=None)
@given(cases())
def test_keep_top(case):
    scores, candidates, counts = case
    keep = np.asarray(jax.jit(keep_top)(*case))
    for i in np.ndindex(*counts.shape):
        # XLA flushes denormals on the CPU, so that they tie with zero.
        flushed = np.where(np.abs(scores[i]) < np.finfo(np.float32).tiny, 0, scores[i])
        assert set(np.flatnonzero(keep[i])) == sorted_top(flushed, candidates[i], counts[i])


def test_ties_and_nan():
    scores = jnp.array([1.0, jnp.nan, 1.0, 2.0, 1.0, -jnp.inf])
    everything = jnp.ones(6, bool)
    assert np.flatnonzero(keep_top(scores, everything, jnp.int32(3))).tolist() == [0, 2, 3]
    assert np.flatnonzero(keep_top(scores, everything, jnp.int32(5))).tolist() == [0, 1, 2, 3, 4]
    assert np.flatnonzero(keep_top(jnp.full(6, jnp.nan), everything, jnp.int32(4))).tolist() == [0, 1, 2, 3]
    assert np.flatnonzero(keep_top(scores, scores < 2, jnp.int32(9))).tolist() == [0, 2, 4, 5]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_compact(data):
    size = TILES * PATCHES
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=IMAGES * size, max_size=IMAGES * size)))
    orders = [data.draw(st.permutations(range(size))) for _ in range(IMAGES)]
    used = data.draw(st.lists(st.integers(0, size), min_size=IMAGES, max_size=IMAGES))
    order = np.array([o[:n] + [-1] * (size - n) for o, n in zip(orders, used, strict=True)], np.int32)
    keep = keep.reshape(IMAGES, TILES, PATCHES)
    indices, valid, _ = compact(jnp.asarray(keep), jnp.asarray(order), SLOTS)
    for image in range(IMAGES):
        packed = [i for i in order[image] if i >= 0 and keep[image].reshape(-1)[i]][:SLOTS]
        assert indices[image].tolist() == packed + [-1] * (SLOTS - len(packed))
        assert valid[image].tolist() == [True] * len(packed) + [False] * (SLOTS - len(packed))
