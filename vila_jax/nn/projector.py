"""The projector: from the tower's width to the decoder's."""

import itertools
import math

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vila_jax.nn.config import ProjectorConfig
from vila_jax.nn.layers import ACTIVATIONS, LayerNorm, Linear

_NORM_EPS = 1e-5


class Projector(nnx.Module):
    """Linear layers with activations between them, and in VILA's merging kinds a norm before all but the last.

    Two steps: `merge` needs whole tiles; what follows maps vector by vector, so that it commutes with selecting them.
    """

    def __init__(self, config: ProjectorConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.window, self.act = config.window, ACTIVATIONS[config.hidden_act]
        normed = config.widths[:-2] if config.norms else ()
        self.norms = nnx.List([LayerNorm(width, _NORM_EPS, rngs=rngs, dtype=dtype) for width in normed])
        self.layers = nnx.List(
            [
                Linear(i, o, _axes(layer), bias=config.bias, rngs=rngs, dtype=dtype)
                for layer, (i, o) in enumerate(itertools.pairwise(config.widths))
            ]
        )

    def merge(self, features: Float[Array, "R P Dv"]) -> Float[Array, "R M Dm"]:
        """Concatenates the vectors of every window of `k x k` patches, `Dm = k * k * Dv`.

            a b c        k = 2, one letter per patch:    [a b d e]  [c 0 f 0]
            d e f                                        [g h 0 0]  [i 0 0 0]
            g h i

        Windows in raster order, patches of a window in raster order; a window that reaches over the lower or right
        edge is filled up with zeros. A window of one patch changes nothing.

        Raises:
          ValueError: the patches of a tile are no square.
        """
        if self.window == 1:
            return features
        windows = _windows(features, self.window)
        return windows.reshape(*windows.shape[:2], -1)

    def __call__(self, x: Float[Array, "*batch Dm"]) -> Float[Array, "*batch D"]:
        for i, layer in enumerate(self.layers):
            x = self.act(x) if i else x
            x = layer(self.norms[i](x) if i < len(self.norms) else x)
        return x


def _axes(layer: int) -> tuple[str, str]:
    """Split in turns by output and by input, as the two layers of an MLP are: what is between them is split one way."""
    return ("projector_inner", "projector_outer") if layer % 2 == 0 else ("projector_outer", "projector_inner")


def pool_windows(scores: Float[Array, "R P"], window: int) -> Float[Array, "R M"]:
    """Scores of patches -> of the cells that `Projector.merge` makes of them: the sum over each window."""
    return scores if window == 1 else jnp.sum(_windows(scores[:, :, None], window), axis=(2, 3))


def _windows(values: Float[Array, "R P D"], k: int) -> Float[Array, "R M W D"]:
    """The `W = k * k` patches of every window, zeros where it reaches over the edge."""
    tiles, patches, width = values.shape
    side = math.isqrt(patches)
    if side * side != patches:
        raise ValueError(f"{patches} patches of a tile are no square, so windows cannot be merged")
    cells = -(-side // k)
    missing = (0, cells * k - side)
    grid = jnp.pad(values.reshape(tiles, side, side, width), ((0, 0), missing, missing, (0, 0)))
    return grid.reshape(tiles, cells, k, cells, k, width).swapaxes(2, 3).reshape(tiles, cells * cells, k * k, width)
