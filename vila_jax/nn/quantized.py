"""Numbers in fewer bits: what they are rounded to, and products with them.

    w ~ values * scales      values [o, i] of eight or four bits, scales [o, g] in float32: one for every `i / g` inputs

Rounding is symmetric: the largest of the numbers that share a scale becomes the largest value, zero stays zero. An
output channel has one scale (`g = 1`) where eight bits are plenty, and one for every group of inputs where there are
four. With one scale the product is multiplied by it, and what is converted in the product are whole numbers, exact in
every dtype; with several the weight is, inside the product.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from vila_jax.nn.products import linear

Kind = Literal["int8", "int4", "fp8"]


@dataclasses.dataclass(frozen=True)
class Format:
    """A kind of value.

    Attributes:
      dtype: as JAX names it; XLA packs two values of `int4` into a byte.
      bits: of a value.
      largest: that the largest number is rounded to.
      group: inputs that share a scale, at most; None for all of them.
    """

    dtype: DTypeLike
    bits: int
    largest: float
    group: int | None = None

    @property
    def is_whole(self) -> bool:
        """Whether values are whole numbers, evenly spaced."""
        return bool(jnp.issubdtype(self.dtype, jnp.integer))


FORMATS: dict[Kind, Format] = {
    "int8": Format(jnp.int8, 8, 127.0),
    "int4": Format(jnp.int4, 4, 7.0, group=128),
    "fp8": Format(jnp.float8_e4m3fn, 8, 448.0),
}


def groups(inputs: int, group: int | None) -> int:
    """Scales of an output channel: groups are of equal size, the largest up to `group` that divides the inputs."""
    if group is None:
        return 1
    return next(inputs // size for size in range(min(group, inputs), 0, -1) if inputs % size == 0)


def quantize(
    weight: Float[Array, "o i"], kind: Kind, group: int | None = None
) -> tuple[Shaped[Array, "o i"], Float[Array, "o g"]]:
    """Rounds a weight.

    Args:
      group: inputs that share a scale, at most; None for all of them.

    Returns:
      Values and scales. Of whole numbers every weight is at most half a scale off.
    """
    form = FORMATS[kind]
    rows, inputs = weight.shape
    parts = weight.astype(jnp.float32).reshape(rows, groups(inputs, group), -1)
    scales = scales_of(parts, form.largest)
    values = parts / scales
    values = jnp.round(values) if form.is_whole else values
    return values.astype(form.dtype).reshape(rows, inputs), scales[..., 0]


def scales_of(parts: Float[Array, "*rows n"], largest: float) -> Float[Array, "*rows 1"]:
    """What the largest of each row is divided by to become `largest`; 1 for a row of zeros."""
    most = jnp.max(jnp.abs(parts.astype(jnp.float32)), axis=-1, keepdims=True)
    return jnp.where(most > 0, most / largest, 1.0)


def dequantize(values: Shaped[Array, "*rows i"], scales: Float[Array, "*rows g"]) -> Float[Array, "*rows i"]:
    """What values and scales stand for, float32."""
    parts = values.astype(jnp.float32).reshape(*scales.shape, -1)
    return (parts * scales[..., None]).reshape(values.shape)


def product(
    x: Float[Array, "*batch i"], values: Shaped[Array, "o i"], scales: Float[Array, "o g"], dtype: DTypeLike
) -> Float[Array, "*batch o"]:
    """`x W^T` with the weight that values and scales stand for.

    Args:
      dtype: of the result.
    """
    if scales.shape[1] > 1:
        weight = dequantize(values, scales).astype(x.dtype)
        return linear(x, weight, dtype)
    y = linear(x, values.astype(x.dtype), jnp.float32)
    return (y * scales.reshape((1,) * (y.ndim - 1) + (-1,))).astype(dtype)
