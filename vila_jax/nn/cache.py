"""The entries of a cache: keys or values of one layer, in the dtype of computation or in eight bits.

In eight bits every token and head has a scale of its own, which is written with it and never changes: entries that were
written once are neither read nor rounded again. What reads the cache gets numbers of the dtype that it computes in.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Int8

from vila_jax.nn.quantized import FORMATS, scales_of


class Int8Entries(NamedTuple):
    """Entries in eight bits: they stand for `values * scales`."""

    values: Int8[Array, "*rows K S H"]
    scales: Float[Array, "*rows K S 1"]


Entries = Float[Array, "*rows K _S H"] | Int8Entries  # S differs from layer to layer


def empty_entries(shape: tuple[int, ...], dtype: DTypeLike) -> Entries:
    """Entries `[*rows, K, S, H]` that nothing was written to yet.

    Args:
      dtype: that they are kept in; `int8` comes with scales.
    """
    if jnp.dtype(dtype) == jnp.int8:
        return Int8Entries(jnp.zeros(shape, jnp.int8), jnp.zeros((*shape[:-1], 1), jnp.float32))
    return jnp.zeros(shape, dtype)


def write(entries: Entries, new: Float[Array, "B K T H"], offset: Int[Array, " B"] | None) -> Entries:
    """Writes `new` at `offset` of each row (at the start when there is none); what does not fit is dropped."""
    if not isinstance(entries, Int8Entries):
        return _write(entries, new.astype(entries.dtype), offset)
    scales = scales_of(new, FORMATS["int8"].largest)
    values = jnp.round(new.astype(jnp.float32) / scales).astype(jnp.int8)
    return Int8Entries(_write(entries.values, values, offset), _write(entries.scales, scales, offset))


def read(entries: Entries, dtype: DTypeLike) -> Float[Array, "*rows K S H"]:
    """All entries, as numbers to compute with."""
    if isinstance(entries, Int8Entries):
        return (entries.values.astype(jnp.float32) * entries.scales).astype(dtype)
    return entries


def length(entries: Entries) -> int:
    """How many entries there is room for."""
    return (entries.values if isinstance(entries, Int8Entries) else entries).shape[-2]


def _write(cache: jax.Array, new: jax.Array, offset: Int[Array, " B"] | None) -> jax.Array:
    """`[*rows, K, S, H]` with `[B, K, T, H]` written into it."""
    rows = cache.reshape(new.shape[0], *cache.shape[-3:])
    if offset is None:
        return jax.lax.dynamic_update_slice(rows, new, (0, 0, 0, 0)).reshape(cache.shape)
    entries = offset[:, None] + jnp.arange(new.shape[2])[None, :]
    write_row = jax.vmap(lambda row, entry, value: row.at[:, entry].set(value, mode="drop"))
    return write_row(rows, entries, new).reshape(cache.shape)
