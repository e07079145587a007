"""VILA's choice of a grid of tiles, and cutting a picture into it.

Sources: NVILA (arXiv 2412.04468), whose choice is that of InternVL 1.5 (arXiv 2404.16821).
"""

import functools

import numpy as np
from jaxtyping import Float32

from vila_jax.vision.geometry import Size


@functools.lru_cache
def candidate_grids(min_tiles: int, max_tiles: int) -> tuple[Size, ...]:
    """Every grid (rows, columns) of `min_tiles` to `max_tiles` tiles, those of fewest tiles first."""
    lengths = range(1, max_tiles + 1)
    grids = [(rows, columns) for columns in lengths for rows in lengths if min_tiles <= rows * columns <= max_tiles]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def closest_grid(image_size: Size, tile: int, min_tiles: int, max_tiles: int) -> Size:
    """The grid (rows, columns) whose shape is nearest to that of the picture.

    Of grids equally near, one of more tiles is taken if the picture has more than half of its pixels.
    """
    height, width = image_size
    aspect, best, distance = width / height, (1, 1), float("inf")
    for grid in candidate_grids(min_tiles, max_tiles):
        rows, columns = grid
        away = abs(aspect - columns / rows)
        if away < distance or (away == distance and width * height > 0.5 * tile * tile * rows * columns):
            best, distance = grid, away
    return best


def split_tiles(image: Float32[np.ndarray, "3 H W"], tile: int) -> Float32[np.ndarray, "P 3 tile tile"]:
    """Cuts a picture whose edges are multiples of `tile` into tiles, row by row."""
    channels, height, width = image.shape
    parts = image.reshape(channels, height // tile, tile, width // tile, tile)
    return parts.transpose(1, 3, 0, 2, 4).reshape(-1, channels, tile, tile)
