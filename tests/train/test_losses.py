"""Losses against torch and the reference's soft cross entropy; nothing as large as the full scores is held."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from train.data.labels import IGNORED
from train.losses import SoftTargets, cross_entropy


def case(rows=3, length=11, width=8, vocabulary=37, seed=0):
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((rows, length, width)).astype(np.float32)
    table = rng.standard_normal((vocabulary, width)).astype(np.float32)
    targets = rng.integers(0, vocabulary, (rows, length)).astype(np.int32)
    targets[rng.random((rows, length)) < 0.4] = IGNORED
    return hidden, table, targets


@pytest.mark.parametrize("chunk", [1, 5, 7, 33, 64])
def test_loss_and_gradients_of_torch(chunk):
    hidden, table, targets = case()

    def mean(hidden, table):
        sums = cross_entropy(lambda h: h @ table.T, hidden, targets, chunk=chunk)
        return sums.loss / sums.targets, sums

    (loss, sums), grads = jax.value_and_grad(mean, argnums=(0, 1), has_aux=True)(hidden, jnp.asarray(table))
    h, w = torch.tensor(hidden, requires_grad=True), torch.tensor(table, requires_grad=True)
    logits = h @ w.T
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten().long())
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(grads[0], h.grad.numpy(), atol=1e-6)
    np.testing.assert_allclose(grads[1], w.grad.numpy(), atol=1e-6)
    known = targets != IGNORED
    assert sums.targets == known.sum()
    assert sums.right == np.sum(logits.argmax(-1).numpy()[known] == targets[known])


def test_nothing_to_learn_is_no_loss():
    hidden, table, targets = case()
    sums = cross_entropy(lambda h: h @ table.T, hidden, np.full_like(targets, IGNORED))
    assert float(sums.loss) == 0.0 and int(sums.targets) == 0


@pytest.mark.parametrize("std", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("chunk", [4, 1024])
def test_soft_targets_of_the_reference(golden, std, chunk):
    with np.load(golden / "vila" / "modules" / "soft_cross_entropy.npz") as arrays:
        logits, targets, tokens = arrays["logits"], arrays["targets"], arrays["soft_tokens"].tolist()
        expected = arrays[f"loss_std_{std}"]
    sums = cross_entropy(lambda x: x, logits[:, :-1], targets[:, 1:], soft=SoftTargets(tokens, std), chunk=chunk)
    np.testing.assert_allclose(sums.loss / sums.targets, expected, rtol=1e-5)


def test_no_full_table_of_scores_is_held():
    hidden, table, targets = case(rows=8, length=256, width=16, vocabulary=4096)

    def mean(hidden, table, chunk):
        sums = cross_entropy(lambda h: h @ table.T, hidden, targets, chunk=chunk)
        return sums.loss / sums.targets

    def temporary(chunk):
        step = jax.jit(jax.grad(mean, argnums=(0, 1)), static_argnums=2)
        return step.lower(hidden, table, chunk).compile().memory_analysis().temp_size_in_bytes

    full = 4 * hidden.shape[0] * hidden.shape[1] * len(table)
    assert temporary(8 * 256) > full > 4 * temporary(64)
