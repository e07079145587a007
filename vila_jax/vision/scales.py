"""Pictures seen at several scales (S2, dynamic S2): where each block finds its features, and how scales are made.

The tower sees, for every scale, a mosaic of tiles. The feature maps of all scales are resized to one map by averaging
areas, and stand side by side in its vectors; the map is then cut into blocks for the projector. Which patches a vector
averages follows from sizes alone, so it is worked out here, and the device only gathers (`vila_jax.nn.scales`).

Sources: S2 (arXiv 2403.13043), NVILA (arXiv 2412.04468).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int, Int32

from vila_jax.vision.geometry import Size, tile_mosaic

_A = -0.75  # of the cubic kernel, as in PyTorch; Pillow has -0.5


@dataclasses.dataclass(frozen=True)
class ScaleMap:
    """Where the features of a picture's blocks come from.

    Attributes:
      index: for block `B`, patch `P` of it and scale `S` the flat indices, among the patches of all tower tiles of the
        picture, of those whose mean it is; -1 is unused.
    """

    index: Int32[np.ndarray, "B P S W"]


def scale_map(grids: Sequence[Size], side: int, blocks: Size, block_side: int, width: int) -> ScaleMap:
    """Resizes the maps of all scales to a mosaic of blocks.

    Args:
      grids: (rows, columns) of the tower tiles of every scale; tiles are numbered scale after scale, row by row.
      side: patches along one edge of a tower tile.
      blocks: (rows, columns) of the blocks.
      block_side: vectors along one edge of a block.
      width: `W`, room for as many patches as any vector averages.
    """
    rows, columns = blocks
    size, first_tile, tables = (rows * block_side, columns * block_side), 0, []
    for grid in grids:
        windows = _area_windows(tile_mosaic(grid, side, first_tile), size, width)
        parts = windows.reshape(rows, block_side, columns, block_side, width).transpose(0, 2, 1, 3, 4)
        tables.append(parts.reshape(rows * columns, block_side**2, width))
        first_tile += grid[0] * grid[1]
    return ScaleMap(np.stack(tables, axis=2))


def repeated_map(side: int, num_scales: int, width: int) -> ScaleMap:
    """A single tile, whose map stands in for every scale."""
    once = scale_map([(1, 1)], side, (1, 1), side, width).index
    return ScaleMap(np.repeat(once, num_scales, axis=2))


def widest_window(length: int, new_length: int) -> int:
    """Most patches that one vector averages along an edge that is resized from `length` to `new_length`."""
    return max(stop - start for start, stop in _spans(length, new_length).tolist())


def _area_windows(
    cells: Int[np.ndarray, "rows columns"], size: Size, width: int
) -> Int32[np.ndarray, "new_rows new_columns W"]:
    """The cells that each cell of a map of another size averages, -1 where there are fewer than `width`."""
    row, column = (_windows(length, new) for length, new in zip(cells.shape, size, strict=True))
    row, column = row[:, None, :, None], column[None, :, None, :]
    windows = np.where((row >= 0) & (column >= 0), cells[row, column], -1).reshape(*size, -1)
    padded = np.full((*size, width), -1, np.int32)
    padded[..., : windows.shape[-1]] = windows
    return padded


def _windows(length: int, new_length: int) -> Int[np.ndarray, "new_length window"]:
    """The places along an edge that each new one averages, -1 where unused."""
    start, stop = _spans(length, new_length).T[:, :, None]
    places = start + np.arange(widest_window(length, new_length))
    return np.where(places < stop, places, -1)


def _spans(length: int, new_length: int) -> Int[np.ndarray, "new_length 2"]:
    """Start and stop: all places that a new one overlaps. Source: adaptive average pooling of PyTorch."""
    new = np.arange(new_length)
    return np.stack([new * length // new_length, -(-(new + 1) * length // new_length)], axis=1)


def resize_bicubic(image: Float32[np.ndarray, "3 H W"], size: Size) -> Float32[np.ndarray, "3 h w"]:
    """Resizes normalised pixels as PyTorch does, without smoothing: `interpolate(mode="bicubic")`."""
    for axis, new_length in ((2, size[1]), (1, size[0])):
        shape = [1, 1, 1]
        shape[axis] = new_length
        places, weights = _taps(image.shape[axis], new_length)
        terms = [
            np.take(image, place, axis) * weight.reshape(shape) for place, weight in zip(places, weights, strict=True)
        ]
        image = (terms[0] + terms[1]) + (terms[2] + terms[3])
    return image


def _taps(length: int, new_length: int) -> tuple[Int[np.ndarray, "4 new"], Float32[np.ndarray, "4 new"]]:
    """The four places that each new one along an edge is made of, and their weights; edges are repeated."""
    centre = np.float32(length / new_length) * (np.arange(new_length, dtype=np.float32) + np.float32(0.5))
    centre = centre - np.float32(0.5)
    first = np.floor(centre)
    t = centre - first
    near, far = np.stack([t, 1 - t]), np.stack([t + 1, 2 - t])
    inner = ((_A + 2) * near - (_A + 3)) * near * near + 1
    outer = ((_A * far - 5 * _A) * far + 8 * _A) * far - 4 * _A
    places = np.clip(first.astype(np.int64) + np.arange(-1, 3)[:, None], 0, length - 1)
    return places, np.stack([outer[0], inner[0], inner[1], outer[1]])
