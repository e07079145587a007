"""Means of rows of a table, where the host says which rows."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def mean_rows(table: Float[Array, "V D"], index: Int[Array, "*shape W"]) -> Float[Array, "*shape D"]:
    """The mean of `table[index]` over the last axis of `index`, in float32.

    A loop adds one row of all means at a time: all at once would be `W` times the result.

    Args:
      index: rows of the table; -1 is unused. Where all are, the mean is zero.
    """

    def add(total: Float[Array, "*shape D"], row: Int[Array, "*shape"]) -> tuple[Float[Array, "*shape D"], None]:
        vector = table[jnp.maximum(row, 0)].astype(jnp.float32)
        return total + jnp.where(row[..., None] >= 0, vector, 0.0), None

    total, _ = jax.lax.scan(
        add, jnp.zeros((*index.shape[:-1], table.shape[1]), jnp.float32), jnp.moveaxis(index, -1, 0)
    )
    count = jnp.sum(index >= 0, axis=-1, dtype=jnp.float32)
    return total / jnp.maximum(count, 1.0)[..., None]
