"""Linear layers, norms and activations shared by the tower, the projector and the decoder."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vila_jax.nn.config import Activation
from vila_jax.nn.params import Axes, fan_in, ones, weight, zeros
from vila_jax.nn.products import linear
from vila_jax.nn.quantized import product as quantized_product


def _quick_gelu(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[Activation, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": _quick_gelu,
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}


def along_last(vector: jax.Array, ndim: int) -> jax.Array:
    """A vector with leading axes of size one, so that it broadcasts against `ndim` axes without silent promotion."""
    return vector.reshape((1,) * (ndim - 1) + vector.shape)


class Linear(nnx.Module):
    """`y = x W^T + b`.

    The weight stays `[out, in]` as in the published checkpoints, so that reading and writing them are renames.

    Attributes:
      scale: of a weight in fewer bits, `[out, g]`, see `vila_jax.nn.quantized`; else None.
      lora: while it is trained, a low-rank addition to the weight; else None.
    """

    def __init__(
        self, in_features: int, out_features: int, axes: Axes, *, bias: bool, rngs: nnx.Rngs, dtype: DTypeLike
    ):
        shape = (out_features, in_features)
        self.weight = weight(shape, axes, fan_in(shape), rngs=rngs, dtype=dtype)
        self.bias = weight((out_features,), axes[:1], zeros, rngs=rngs, dtype=dtype) if bias else None
        self.scale: nnx.Param | None = nnx.data(None)
        self.lora: LowRank | None = nnx.data(None)

    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        if self.scale is None:
            y = linear(x, self.weight[...])
        else:
            y = quantized_product(x, self.weight[...], self.scale[...], x.dtype)
        y = y if self.lora is None else y + self.lora(x)
        return y if self.bias is None else y + along_last(self.bias[...], y.ndim)


class Joined(nnx.Module):
    """Several `Linear`s of one input as one product: their weights one below the other.

    Args:
      parts: all with a bias or all without, in the same number of bits, and none with a `lora`.
    """

    def __init__(self, parts: Sequence[Linear]):
        graphdefs, states = zip(*map(nnx.split, parts), strict=True)
        self.widths = tuple(part.weight[...].shape[0] for part in parts)
        arrays = [nnx.to_pure_dict(state) for state in states]
        self.linear = nnx.merge(graphdefs[0], jax.tree.map(lambda *own: jnp.concatenate(own), *arrays))

    def __call__(self, x: Float[Array, "*batch i"]) -> list[Float[Array, "*batch _o"]]:
        return jnp.split(self.linear(x), np.cumsum(self.widths)[:-1], axis=-1)

    def part(self, number: int) -> Linear:
        """One of them by itself, whose weights are copied."""
        rows = slice(sum(self.widths[:number]), sum(self.widths[: number + 1]))
        graphdef, state = nnx.split(self.linear)
        return nnx.merge(graphdef, jax.tree.map(lambda own: own[rows], nnx.to_pure_dict(state)))


class LowRank(nnx.Module):
    """`scale * (x A^T) B^T`: LoRA (arXiv 2106.09685). `B` starts at zero, so that nothing changes at first.

    The weight that it is added to is neither changed nor differentiated: it costs the backward pass activations alone.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        axes: Axes,
        rank: int,
        scale: float,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ):
        self.scale = scale
        down, up = (rank, in_features), (out_features, rank)
        self.down = weight(down, (None, axes[1]), fan_in(down), rngs=rngs, dtype=dtype)
        self.up = weight(up, (axes[0], None), zeros, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        return linear(linear(x, self.down[...]), self.up[...]) * self.scale

    def product(self) -> Float[Array, "o i"]:
        """What is added to the weight when the two become one."""
        return jnp.einsum("or,ri->oi", self.up[...], self.down[...], precision="highest") * self.scale


class LayerNorm(nnx.Module):
    """Layer norm with scale and bias, computed in float32."""

    def __init__(self, features: int, eps: float, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.eps = eps
        self.weight = weight((features,), ("norm",), ones, rngs=rngs, dtype=dtype)
        self.bias = weight((features,), ("norm",), zeros, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, -1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + self.eps)
        scale, bias = (along_last(p[...].astype(jnp.float32), y.ndim) for p in (self.weight, self.bias))
        return (y * scale + bias).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square norm with scale, computed in float32."""

    def __init__(self, features: int, eps: float, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.eps = eps
        self.weight = weight((features,), ("norm",), ones, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + self.eps)
        return (y * along_last(self.weight[...].astype(jnp.float32), y.ndim)).astype(x.dtype)
