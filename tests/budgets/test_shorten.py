"""What holds behind every cut, whatever the scores are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vila_jax.budgets import Step
from vila_jax.infer.decoder_plan import plan_decoder
from vila_jax.infer.shorten import Tokens, shorten

WIDTH, LENGTHS = 64, (60, 41, 9)
VISUAL = np.zeros((3, WIDTH), bool)
VISUAL[0, 3:23] = VISUAL[0, 30:50] = VISUAL[1, :37] = True  # two pictures, one, none
values = st.sampled_from([0.0, 1.0, float("nan"), float("inf"), float("-inf")]) | st.floats(width=32)


def plan(spec):
    rows = [(length - int(visual.sum()), int(visual.sum())) for length, visual in zip(LENGTHS, VISUAL, strict=True)]
    sizes = {"batch": 3, "full": (WIDTH, WIDTH), "question": 4, "new_tokens": 1, "limit": 512}
    return plan_decoder(Step.parse(spec), 6, rows, **sizes)


def cut(spec, scores):
    """Places that the tokens left of every row had, and which of the first `WIDTH` are merged ones."""
    place = np.tile(np.arange(WIDTH, dtype=np.int32), (3, 1))
    x = np.stack([place, np.ones_like(place)], axis=-1).astype(np.float32)
    source = np.where(VISUAL, place, -1).astype(np.int32)
    tokens = Tokens(*map(jnp.asarray, (x, place, VISUAL, source, np.array(LENGTHS, np.int32))))
    planned = plan(spec)
    counts = jax.tree.map(lambda count: jnp.asarray(count[0]), planned.kept)
    left = _shorten(tokens, jnp.asarray(scores), counts, planned.schedule)
    return [np.asarray(left.x[row, : int(n), 0]) for row, n in enumerate(left.lengths)], left


@functools.partial(jax.jit, static_argnums=3)
def _shorten(tokens, scores, counts, schedule):
    return shorten(tokens, scores, counts, 0, schedule)


def draw(data):
    palette = np.array(data.draw(st.lists(values, min_size=1, max_size=4)), np.float32)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    return palette[rng.integers(len(palette), size=(3, WIDTH))]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_all_text_and_exactly_the_count(data):
    rows, left = cut("fastv:0.4", draw(data))
    for row, (places, expected) in enumerate(zip(rows, (16, 14, 0), strict=True)):
        text = np.flatnonzero(~VISUAL[row, : LENGTHS[row]])
        kept = np.setdiff1d(places, text)
        assert places.tolist() == sorted(set(places.tolist())) and set(text) <= set(places)
        assert len(kept) == expected and VISUAL[row][kept.astype(int)].all()
        assert left.positions[row, : len(places)].tolist() == places.astype(int).tolist()
        assert not left.visual[row, len(places) :].any()
        assert [int(i) for i in left.source[row] if i >= 0] == kept.tolist()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_larger_budget_keeps_what_a_smaller_one_does(data):
    scores = draw(data)
    small, large = (cut(spec, scores)[0] for spec in ("fastv:0.2", "fastv:0.7"))
    for some, more in zip(small, large, strict=True):
        assert set(some.tolist()) <= set(more.tolist())


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_merged_tokens_count_and_follow_the_last_one_kept(data):
    rows, left = cut("sparsevlm:0.4,ratio1=0.6", draw(data))
    for row, (places, expected) in enumerate(zip(rows, (24, 22, 0), strict=True)):
        text = ~VISUAL[row, : LENGTHS[row]]
        assert int(left.visual[row].sum()) == expected and len(places) == expected + text.sum()
        assert left.positions[row, : len(places)].tolist() == list(range(len(places)))
        assert np.asarray(left.x[row, : len(places), 1] == 1).all()  # means of ones
        assert set(np.flatnonzero(text)) <= set(places)
