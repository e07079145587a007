"""The token scorer: how much each visual token matters, from what the projector takes of it.

A part that a model may have beside tower, projector and decoder. It is trained while these are frozen
(`python -m train scorer`), and the budget `learned` ranks by it.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vila_jax.nn.layers import LayerNorm, Linear, along_last

_NORM_EPS = 1e-5


class Scorer(nnx.Module):
    """Norm, linear layer, GELU, linear layer to one number, for every token by itself.

    Args:
      width: of the merged vectors that the projector takes.
      hidden: between the two layers.
    """

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.norm = LayerNorm(width, _NORM_EPS, rngs=rngs, dtype=dtype)
        self.fc1 = Linear(width, hidden, (None, None), bias=True, rngs=rngs, dtype=dtype)
        self.fc2 = Linear(hidden, 1, (None, None), bias=True, rngs=rngs, dtype=dtype)

    def __call__(self, merged: Float[Array, "*batch Dm"]) -> Float[Array, "*batch"]:
        """Scores, which are compared and never read as numbers; float32 in full precision whatever the model's is."""
        hidden = jax.nn.gelu(_full(self.fc1, self.norm(merged.astype(jnp.float32))), approximate=False)
        return _full(self.fc2, hidden)[..., 0]


def _full(layer: Linear, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
    """A linear layer in float32, without the shortcuts that accelerators take."""
    assert layer.bias is not None
    weight, bias = (p[...].astype(jnp.float32) for p in (layer.weight, layer.bias))
    y = jnp.einsum("...i,oi->...o", x, weight, precision=jax.lax.Precision.HIGHEST)
    return y + along_last(bias, y.ndim)
