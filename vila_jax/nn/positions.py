"""Learned positions for tiles of another size, resized once when a checkpoint is loaded; on the host.

Both rules take the rows of an `n x n` grid to those of a `side x side` grid, compute in float32 and keep the dtype.
"""

import numpy as np
from jaxtyping import Float


def resize_positions_linear(position: Float[np.ndarray, "P D"], side: int) -> Float[np.ndarray, "Q D"]:
    """VILA's `interpolate_mode: linear` for towers without a class token.

    Interpolates along the *flattened* grid, not along its rows and columns, and leaves a hole, which the models that
    were trained with it know: a new row that falls exactly on an old one, as the first and the last do, is zero.
    """
    old, new = len(position), side * side
    if old == new:
        return position
    where = np.arange(new, dtype=np.float32) / np.float32(new - 1) * np.float32(old - 1)
    below, above = np.floor(where), np.ceil(where)
    rows = position.astype(np.float32)
    resized = rows[below.astype(int)] * (above - where)[:, None] + rows[above.astype(int)] * (where - below)[:, None]
    return resized.astype(position.dtype)


def resize_positions_bicubic(position: Float[np.ndarray, "P D"], side: int) -> Float[np.ndarray, "Q D"]:
    """InternViT's rule: the class token's row, which comes first, is kept; the grid is resized by cubic convolution.

    Pixel centres at halves, coefficient -0.75, edges repeated, no antialiasing: PyTorch's `bicubic`.
    """
    kept, grid = position[:1], position[1:].astype(np.float32)
    old = round(len(grid) ** 0.5)
    if old == side:
        return position
    weights = _cubic_weights(old, side)
    resized = np.einsum("yh,xw,hwd->yxd", weights, weights, grid.reshape(old, old, -1), optimize=True)
    return np.concatenate([kept, resized.reshape(side * side, -1).astype(position.dtype)])


def _cubic_weights(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """The matrix that resizes one axis."""
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old), np.float32)
    for offset in range(-1, 3):
        source = np.floor(centre).astype(int) + offset
        np.add.at(weights, (np.arange(new), np.clip(source, 0, old - 1)), _cubic(np.abs(centre - source)))
    return weights


def _cubic(distance: Float[np.ndarray, " n"], a: float = -0.75) -> Float[np.ndarray, " n"]:
    """The cubic convolution kernel (Keys, 1981) at a distance of 0 to 2."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, far)
