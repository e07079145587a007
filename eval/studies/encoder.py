"""The parts of small transformer encoders whose tokens may leave between two blocks."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from vila_jax.nn.attention import attention
from vila_jax.nn.layers import ACTIVATIONS, LayerNorm, Linear
from vila_jax.nn.params import normal, weight

_EPS = 1e-6
_EXPANSION = 4  # width of the MLP by the width of the model


class PatchEmbedding(nnx.Module):
    """Square patches through one linear layer, plus learned positions."""

    def __init__(self, side: int, patch: int, width: int, *, rngs: nnx.Rngs):
        self.patch, self.tokens = patch, (side // patch) ** 2
        self.linear = linear(3 * patch**2, width, rngs)
        self.position = weight((self.tokens, width), (None, None), normal(0.02), rngs=rngs)

    def __call__(self, pixels: Float[Array, "B h w 3"]) -> Float[Array, "B N D"]:
        batch, side, p = pixels.shape[0], pixels.shape[1] // self.patch, self.patch
        patches = pixels.reshape(batch, side, p, side, p, 3).swapaxes(2, 3).reshape(batch, self.tokens, -1)
        return self.linear(patches) + self.position[...][None]


class EncoderBlock(nnx.Module):
    """Pre-norm self-attention and MLP."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.norm1, self.norm2 = norm(width, rngs), norm(width, rngs)
        self.q, self.k, self.v, self.out = (linear(width, width, rngs) for _ in range(4))
        self.fc1, self.fc2 = linear(width, _EXPANSION * width, rngs), linear(_EXPANSION * width, width, rngs)

    def __call__(self, x: Float[Array, "B T D"], alive: Bool[Array, "B T"] | None = None) -> Float[Array, "B T D"]:
        """Tokens that are not `alive` are computed as well, but no living token sees them."""
        y = self.norm1(x)
        q, k, v = (one(y).reshape(*x.shape[:2], self.heads, -1) for one in (self.q, self.k, self.v))
        # Segment 0 is what all see, and those of segment 0 see nothing else.
        segments = None if alive is None else (~alive).astype(jnp.int32)
        attended = attention(q, k.swapaxes(1, 2), v.swapaxes(1, 2), segments=segments)
        x = x + self.out(attended.reshape(x.shape))
        return x + self.fc2(ACTIVATIONS["gelu"](self.fc1(self.norm2(x))))


def linear(inputs: int, outputs: int, rngs: nnx.Rngs) -> Linear:
    """A float32 linear layer with bias."""
    return Linear(inputs, outputs, (None, None), bias=True, rngs=rngs, dtype=jnp.float32)


def norm(width: int, rngs: nnx.Rngs) -> LayerNorm:
    """A float32 layer norm."""
    return LayerNorm(width, _EPS, rngs=rngs, dtype=jnp.float32)


def best(scores: Float[Array, "B T"], count: int) -> Int[Array, "B K"]:
    """Indices of the `count` highest scores of each row, in rising order; the lowest index wins a tie."""
    return jnp.sort(jax.lax.top_k(scores, count)[1], axis=-1)


def mean_alive(x: Float[Array, "B T D"], alive: Bool[Array, "B T"] | None) -> Float[Array, "B D"]:
    """The mean of the living tokens."""
    if alive is None:
        return jnp.mean(x, axis=1)
    return jnp.sum(jnp.where(alive[:, :, None], x, 0), axis=1) / jnp.maximum(jnp.sum(alive, axis=1), 1)[:, None]


def normalised(pictures: UInt8[Array, "B h w 3"]) -> Float[Array, "B h w 3"]:
    """Pixels around zero, where the dark background of drawn scenes lies."""
    return (pictures.astype(jnp.float32) - 80) / 70


def embedding_flops(tokens: int, patch: int, width: int) -> int:
    """Matrix product of the patch embedding of one picture, a multiply-add counted as two."""
    return 2 * tokens * 3 * patch**2 * width


def block_flops(tokens: float, width: int) -> float:
    """Matrix products of one block for one picture, with the full square of attention."""
    return 2 * tokens * (4 + 2 * _EXPANSION) * width**2 + 4 * tokens**2 * width
