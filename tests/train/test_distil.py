"""Fitting a scorer: the loss against PyTorch's, and targets that can and cannot be learnt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from train.distil import Recipe, compare, divergence, fit, padded, ranking
from train.teacher import Lesson

WIDTH = 8


def lessons(count: int, seed: int) -> list[Lesson]:
    """Pictures of 10 to 40 cells, which receive attention by a direction of theirs that is no matter of length."""
    rng = np.random.default_rng(seed)
    direction = np.random.default_rng(99).standard_normal(WIDTH)
    made = []
    for _ in range(count):
        cells = rng.standard_normal((int(rng.integers(10, 41)), WIDTH)).astype(np.float16)
        shares = np.exp(2 * np.tanh(cells.astype(np.float32) @ direction / 2))
        made.append(Lesson(cells, (shares / shares.sum()).astype(np.float32)))
    return made


def test_the_divergence_is_that_of_pytorch():
    """Mean over pictures of the sum over real cells; what is no cell has no part, whatever its score."""
    some, rng = lessons(3, seed=0), np.random.default_rng(1)
    batch = padded(some, 40)
    scores = rng.standard_normal((3, 40), np.float32)
    expected = np.mean(
        [
            torch.nn.functional.kl_div(
                torch.log_softmax(torch.from_numpy(row[: len(own.shares)]), 0),
                torch.from_numpy(own.shares),
                reduction="sum",
            )
            for row, own in zip(scores, some, strict=True)
        ]
    )
    value, gradient = jax.value_and_grad(divergence)(jnp.asarray(scores), batch.shares, batch.real)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert np.isfinite(gradient).all() and not np.asarray(gradient)[~batch.real].any()
    exact = jnp.where(batch.real, jnp.log(batch.shares), 7.0)
    assert divergence(exact, batch.shares, batch.real) == pytest.approx(0, abs=1e-6)


def test_the_loss_falls_and_held_out_pictures_are_ranked():
    losses = []
    recipe = Recipe(hidden=16, steps=300, batch=8, learning_rate=1e-2)
    scorer = fit(lessons(64, seed=0), recipe, lambda step, loss: losses.append(loss))
    assert len(losses) == 300 and np.mean(losses[-20:]) < 0.1 * np.mean(losses[:5])
    found = compare(scorer, lessons(40, seed=1))
    assert found["scorer"].recall > 0.8
    assert max(found["norm"].recall, found["random"].recall) < 0.45
    assert found["target"].recall == 1
    assert found["target"].attention >= found["scorer"].attention > found["random"].attention


def test_fitting_is_the_same_every_time():
    recipe = Recipe(hidden=4, steps=5, batch=3)
    first, second = (fit(lessons(7, seed=0), recipe).fc1.weight[...] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    other = fit(lessons(7, seed=0), Recipe(hidden=4, steps=5, batch=3, seed=1)).fc1.weight[...]
    assert not np.array_equal(first, other)


def test_ranking():
    """Of five cells two are kept: one of the two most attended is among them."""
    own = Lesson(np.zeros((5, WIDTH), np.float16), np.array([0.4, 0.3, 0.15, 0.1, 0.05], np.float32))
    found = ranking([np.array([0.0, 3.0, 1.0, 2.0, 0.5])], [own], part=0.4)
    assert found.recall == 0.5
    assert found.attention == pytest.approx(0.4)
