"""Which tokens can be drawn, how often they are, and that rows do not know of each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from vila_jax.errors import VilaError
from vila_jax.infer.sampler import Sampler, SamplingOptions, keep_likely

DRAWS = 4000
sample = jax.jit(lambda sampler, logits, index: sampler(logits, index))


def theirs(logits: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    scores = torch.tensor(logits)[None]
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    return scores[0].numpy()


@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_filter_equals_transformers(scale):
    """Every row of a batch with its own settings."""
    settings = [(k, p) for k in (0, 1, 3, 50, 97, 200) for p in (1.0, 0.9, 0.5, 0.01)]
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(len(settings), 97)) * scale).astype(np.float32)
    top_k, top_p = (np.asarray(values) for values in zip(*settings, strict=True))
    ours = keep_likely(jnp.asarray(logits), jnp.asarray(top_k), jnp.asarray(top_p, jnp.float32))
    expected = [theirs(row, k, p) for row, (k, p) in zip(logits, settings, strict=True)]
    np.testing.assert_array_equal(ours, expected)


def test_of_equal_tokens_the_first_are_kept():
    """transformers would keep all that tie with the k-th: more than k."""
    logits = jnp.asarray([[1.0, 2.0, 2.0, 2.0, 0.0]])
    kept = keep_likely(logits, jnp.asarray([2]), jnp.asarray([1.0]))
    np.testing.assert_array_equal(jnp.isfinite(kept), [[False, True, True, False, False]])


@functools.cache
def draw(options: SamplingOptions) -> np.ndarray:
    """Tokens at the first `DRAWS` indices of one row."""
    same = Sampler.of([options] * DRAWS)
    return np.asarray(sample(same, jnp.tile(LOGITS, (DRAWS, 1)), jnp.arange(DRAWS)))


LOGITS = jnp.asarray([2.0, 1.0, 0.0, 1.5, -1.0, 0.5])
FILTERS = {
    "all": SamplingOptions(temperature=1.0),
    "hot": SamplingOptions(temperature=2.5),
    "cold": SamplingOptions(temperature=0.4),
    "top-k": SamplingOptions(temperature=1.5, top_k=3),
    "top-p": SamplingOptions(temperature=1.0, top_p=0.7),
    "both": SamplingOptions(temperature=2.0, top_k=4, top_p=0.8),
}


@pytest.mark.parametrize("name", FILTERS)
def test_tokens_are_drawn_as_often_as_likely(name):
    options = FILTERS[name]
    scores = theirs(np.asarray(LOGITS) / np.float32(options.temperature), options.top_k, options.top_p)
    expected = DRAWS * torch.tensor(scores).softmax(-1).numpy()
    found = np.bincount(draw(options), minlength=len(expected))
    possible = expected > 0
    assert found[~possible].sum() == 0
    chi_square = np.sum((found - expected)[possible] ** 2 / expected[possible])
    assert chi_square < 20.5  # beyond the 99.9 % quantile of 5 degrees of freedom


def test_draws_depend_on_seed_and_index_alone():
    logits = jax.random.normal(jax.random.key(0), (3, 97))
    rows = [SamplingOptions(1.0, seed=4), SamplingOptions(0.7, top_k=9, seed=2**35 + 4), SamplingOptions(1.3, seed=4)]
    index = jnp.asarray([5, 0, 17])
    together = sample(Sampler.of(rows), logits, index)
    alone = [sample(Sampler.of([row]), logits[i : i + 1], index[i : i + 1])[0] for i, row in enumerate(rows)]
    np.testing.assert_array_equal(together, alone)


def test_rows_of_temperature_zero_are_greedy_among_others():
    logits = jax.random.normal(jax.random.key(1), (64, 97))
    rows = [SamplingOptions(temperature=(i % 2) * 1.5, top_k=i % 3, seed=i) for i in range(64)]
    drawn = np.asarray(sample(Sampler.of(rows), logits, jnp.zeros(64, jnp.int32)))
    best = np.argmax(logits, axis=-1)
    np.testing.assert_array_equal(drawn[::2], best[::2])
    assert (drawn[1::2] != best[1::2]).any()


def test_greedy_takes_the_first_of_equal_tokens():
    logits = jnp.asarray([[0.0, 3.0, 3.0], [5.0, 5.0, 5.0]])
    np.testing.assert_array_equal(sample(Sampler.of([SamplingOptions()] * 2), logits, jnp.zeros(2, jnp.int32)), [1, 0])


def test_settings_are_no_part_of_the_program(count_compilations):
    logits, index = jnp.ones((2, 97)), jnp.zeros(2, jnp.int32)
    sample(Sampler.of([SamplingOptions(0.5, 3, 0.9, 1), SamplingOptions()]), logits, index)
    with count_compilations() as count:
        sample(Sampler.of([SamplingOptions(0.7, 0, 0.3, 2**60), SamplingOptions(1.0)]), logits, index)
    assert count() == 0


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", float("nan")),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_options_out_of_range_are_named(option, value):
    with pytest.raises(VilaError, match=f"{option}: got {value}"):
        SamplingOptions(**{option: value})
