"""The projector: from the tower's width to the decoder's."""

import itertools

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vila_jax.nn.config import ProjectorConfig
from vila_jax.nn.layers import ACTIVATIONS, Linear


class Projector(nnx.Module):
    """`linear` (one layer) and `mlpNx_gelu` (N layers), token by token: it commutes with selecting tokens."""

    def __init__(self, config: ProjectorConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.act = ACTIVATIONS[config.hidden_act]
        axes = ("projector_out", "projector_in")
        self.layers = nnx.List(
            [Linear(i, o, axes, bias=config.bias, rngs=rngs, dtype=dtype) for i, o in itertools.pairwise(config.widths)]
        )

    def __call__(self, x: Float[Array, "*batch Dv"]) -> Float[Array, "*batch D"]:
        for i, layer in enumerate(self.layers):
            x = layer(x if i == 0 else self.act(x))
        return x
