"""Which rule trains which weight, and that each rule takes the step it is known for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.config import Stage
from train.optim import block_matrices, decays, optimizer

_STAGE = Stage("s", kind="answers", steps=10, scenes=1, learning_rate=0.1, warmup=1, weight_decay=0.0)


def _params() -> dict:
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(rng.standard_normal((4, 6)), jnp.float32)
    return {"decoder": {"embedding": matrix, "layers": {0: {"weight": matrix, "bias": jnp.ones(4)}}}}


def _updates(stage: Stage, gradient: dict) -> dict:
    rule, params = optimizer(stage), _params()
    state = rule.init(params)
    for _ in range(2):  # the first step of the warm-up has a rate of zero
        updates, state = rule.update(gradient, state, params)
    return updates


def test_muon_takes_the_matrices_of_blocks_alone():
    chosen = block_matrices(_params())
    assert chosen["decoder"]["layers"][0]["weight"] is not None
    assert chosen["decoder"]["layers"][0]["bias"] is None and chosen["decoder"]["embedding"] is None


def test_muon_orthogonalises_and_keeps_the_size_of_adam_steps():
    """All singular values of a step are near each other, whatever those of the gradient; its entries measure 0.2 lr."""
    update = _updates(dataclasses.replace(_STAGE, optimizer="muon"), _params())["decoder"]["layers"][0]["weight"]
    singular = np.linalg.svd(np.asarray(update), compute_uv=False)
    assert singular.max() / singular.min() < 2.0
    assert np.sqrt(np.mean(np.square(update))) == pytest.approx(0.2 * 0.1, rel=0.25)


def test_adamw_is_optax_adamw():
    gradient = _params()
    expected = optax.adamw(0.1, b2=0.98, weight_decay=0.0)
    state = expected.init(_params())
    clipped, _ = optax.clip_by_global_norm(1.0).update(gradient, optax.EmptyState())
    for _ in range(2):
        updates, state = expected.update(clipped, state, _params())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), _updates(_STAGE, gradient), updates)


def test_vectors_do_not_decay():
    assert decays(_params())["decoder"]["layers"][0] == {"weight": True, "bias": False}
