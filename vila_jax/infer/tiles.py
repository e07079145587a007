"""The tiles of a batch's pictures as the tower reads them: one array for each size, filled up to a bucket."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from vila_jax.infer.buckets import tile_bucket, tiles_reserved
from vila_jax.infer.vision import Pictures, Scales, Spec
from vila_jax.vision.geometry import TileGeometry
from vila_jax.vision.preprocess import ProcessedImage


@dataclasses.dataclass(frozen=True)
class Packed:
    """Tiles for one run of the tower.

    Attributes:
      pixels: the tiles of all pictures, padded with black ones; whole ones, then those of each smaller size.
      shown: with a step inside the tower, the patches that show a picture rather than padding; those of black tiles
        count as shown.
      rows: the numbers of each picture's tiles among all.
    """

    pixels: tuple[Float[np.ndarray, "_ 3 _ _"], ...]
    shown: Bool[np.ndarray, "R N"] | None
    rows: tuple[Int[np.ndarray, " _"], ...]


@dataclasses.dataclass(frozen=True)
class Tiles:
    """All pictures of a batch.

    Attributes:
      images: the pictures.
      packed: their tiles.
      scales: for models that see pictures at several scales, how blocks are put together from the tiles.
      pictures: with a budget, what is known of every picture.
      spec: the static part.
      max_tiles: of a picture, all scales together.
      pools: with pooled videos, the visual tokens that every pooled one averages, see `visual_tokens`.
    """

    images: tuple[ProcessedImage, ...]
    packed: Packed
    scales: Scales | None
    pictures: Pictures | None
    spec: Spec
    max_tiles: int
    pools: Int[np.ndarray, "P W"] | None = None

    @property
    def pixels(self) -> tuple[Float[np.ndarray, "_ 3 _ _"], ...]:
        return self.packed.pixels

    @property
    def shown(self) -> Bool[np.ndarray, "R N"] | None:
        return self.packed.shown

    def repacked(self, numbers: Sequence[int]) -> Packed:
        """The tiles of some of the pictures, as if these were the whole batch."""
        if len(numbers) == len(self.images):
            return self.packed
        return pack([self.images[i] for i in numbers], self.max_tiles, reduced=self.spec.reduction is not None)


def pack(images: Sequence[ProcessedImage], max_tiles: int, *, reduced: bool) -> Packed:
    """Packs the tiles of some pictures.

    Args:
      max_tiles: that the model cuts a picture into, all scales together.
      reduced: whether the tower makes the tokens fewer; all tiles are then whole.
    """
    pixels: list[Float[np.ndarray, "_ 3 _ _"]] = []
    rows: dict[int, Int[np.ndarray, " _"]] = {}
    end = 0
    for group in by_size([image.geometry for image in images]):
        counts = [len(images[i].pixels) for i in group]
        rows |= {i: end + first + np.arange(n) for i, first, n in zip(group, running(counts), counts, strict=True)}
        pixels.append(_filled([images[i].pixels for i in group], max_tiles))
        end += len(pixels[-1])
    ordered = tuple(rows[i] for i in range(len(images)))
    if not reduced:
        return Packed(tuple(pixels), None, ordered)
    shown = np.ones((end, images[0].geometry.patches_per_tile), bool)
    for image, own in zip(images, ordered, strict=True):
        shown[own] = image.geometry.real()
    return Packed(tuple(pixels), shown, ordered)


def _filled(pictures: Sequence[Float[np.ndarray, "_ 3 h w"]], max_tiles: int) -> Float[np.ndarray, "R 3 h w"]:
    """The tiles of some pictures in one array, filled up to a bucket with black ones."""
    counts = [len(pixels) for pixels in pictures]
    missing = tile_bucket(counts, tiles_reserved(counts, max_tiles)) - sum(counts)
    return np.concatenate([*pictures, np.zeros((missing, *pictures[0].shape[1:]), pictures[0].dtype)])


def by_size(geometries: Sequence[TileGeometry]) -> list[list[int]]:
    """The pictures of whole tiles, then those of each smaller size."""
    sizes = [geometry.corner or geometry.side for geometry in geometries]
    return [[i for i, own in enumerate(sizes) if own == size] for size in sorted(set(sizes), reverse=True)]


def table(rows: Sequence[Int[np.ndarray, " _"]], shape: tuple[int, int]) -> Int[np.ndarray, "rows P"]:
    """The numbers of each picture's tiles in one array; 0 behind them."""
    made = np.zeros(shape, np.int32)
    for place, own in zip(made, rows, strict=False):
        place[: len(own)] = own
    return made


def running(counts: Sequence[int]) -> Int[np.ndarray, " I"]:
    """Where each of the things begins that follow one another in these numbers."""
    return np.cumsum([0, *counts[:-1]])
