"""The token scorer against the same four layers of PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from vila_jax.nn.params import dotted
from vila_jax.nn.scorer import Scorer

WIDTH, HIDDEN = 12, 7


def _random(dtype=jnp.float32) -> tuple[Scorer, dict[str, np.ndarray]]:
    """A scorer with random weights, norm and biases included, and these by dotted path."""
    scorer, rng = Scorer(WIDTH, HIDDEN, rngs=nnx.Rngs(0), dtype=dtype), np.random.default_rng(0)
    graphdef, state = nnx.split(scorer)
    state = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape, np.float32), dtype), state)
    weights = {dotted(path): np.asarray(leaf.get_value(), np.float32) for path, leaf in nnx.to_flat_state(state)}
    return nnx.merge(graphdef, state), weights


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_is_norm_linear_gelu_linear(dtype):
    """In float32 whatever the weights and the features are in."""
    scorer, weights = _random(dtype)
    theirs = torch.nn.Sequential(
        torch.nn.LayerNorm(WIDTH, eps=1e-5), torch.nn.Linear(WIDTH, HIDDEN), torch.nn.GELU(), torch.nn.Linear(HIDDEN, 1)
    )
    places = {"norm": "0", "fc1": "1", "fc2": "3"}
    renamed = {f"{places[name.split('.')[0]]}.{name.split('.')[1]}": value for name, value in weights.items()}
    theirs.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in renamed.items()})
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 5, WIDTH), np.float32) * 3, dtype)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(np.array(x, np.float32)))[..., 0].numpy()
    scores = scorer(x)
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
