"""Resizing square maps of vectors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_A = -0.75  # of the cubic kernel, as in PyTorch


def resize_bicubic(table: Float[Array, "P D"], side: int) -> Float[Array, "Q D"]:
    """A map of `P` vectors in raster order -> one of `side` x `side`: PyTorch's `interpolate(mode="bicubic")`.

    In float32. This is how Hugging Face fits the positions of a vision tower to pictures of another size.
    """
    old = math.isqrt(table.shape[0])
    matrix = jnp.asarray(_bicubic_matrix(old, side))
    grid = table.astype(jnp.float32).reshape(old, old, -1)
    resized = jnp.einsum("ar,bc,rcD->abD", matrix, matrix, grid, precision=jax.lax.Precision.HIGHEST)
    return resized.reshape(side * side, -1).astype(table.dtype)


def _bicubic_matrix(length: int, new_length: int) -> Float[np.ndarray, "new_length length"]:
    """What each new place along an edge takes of the old ones; edges are repeated, nothing is smoothed."""
    centre = (np.arange(new_length) + 0.5) * (length / new_length) - 0.5
    first = np.floor(centre)
    matrix = np.zeros((new_length, length), np.float32)
    for tap in range(-1, 3):
        away = np.abs(centre - first - tap)
        inner = ((_A + 2) * away - (_A + 3)) * away**2 + 1
        outer = ((_A * away - 5 * _A) * away + 8 * _A) * away - 4 * _A
        place = np.clip(first + tap, 0, length - 1).astype(int)
        np.add.at(matrix, (np.arange(new_length), place), np.where(away <= 1, inner, outer))
    return matrix
