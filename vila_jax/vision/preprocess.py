"""From an RGB picture to the pixel values of its tiles.

Bit-equal to the PIL processors of transformers (5.23), which cannot be used themselves: importing them imports torch
wherever torch is installed. Sources: `image_processing_pil_{clip,siglip,llava,llava_next}.py`.

All geometry happens on 8-bit pixels, so that what remains is a function of one byte a channel: a table of 256 entries.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from vila_jax.errors import ConfigError, ImageError
from vila_jax.vision.geometry import Size, TileGeometry, fit_inside, select_best_resolution
from vila_jax.vision.preprocess_config import PreprocessConfig
from vila_jax.vision.scales import ScaleMap

__all__ = ["Limit", "PreprocessConfig", "Preprocessor", "ProcessedImage"]

Limit = Callable[[TileGeometry], int]
"""Patches that a picture of this geometry may have at most."""

MAX_INTERMEDIATE_PIXELS = 2**28
"""The largest picture made on the way to a tile: a line of 1 x 65535, its shorter edge resized to 336 pixels, would
need 28 GB to keep 336 x 336 of them."""


@dataclasses.dataclass(frozen=True)
class ProcessedImage:
    """The tiles of one picture, channels first.

    Attributes:
      pixels: the overview, then the grid in raster order; of a picture at several scales the tiles of every scale in
        raster order, smallest scale first.
      geometry: how features become tokens.
      scales: how the features of several scales are put together, which gives the tiles (blocks) of `geometry`; None
        where these are the tiles of `pixels`.
      unlimited: of a picture that is shown smaller than the model would see it, the geometry that it would have.
    """

    pixels: Float32[np.ndarray, "P 3 H W"]
    geometry: TileGeometry
    scales: ScaleMap | None = None
    unlimited: TileGeometry | None = None

    @property
    def image_size(self) -> Size:
        """(height, width) of the original picture, in pixels."""
        return self.geometry.image_size

    @functools.cached_property
    def digest(self) -> bytes:
        """SHA-256 of the pixels and of their shape: it names what a vision tower reads of the picture."""
        pixels = np.ascontiguousarray(self.pixels)
        made = hashlib.sha256(repr((pixels.shape, pixels.dtype.str)).encode())
        made.update(pixels.data)
        return made.digest()


@dataclasses.dataclass(frozen=True)
class Preprocessor:
    """Prepares pictures for a vision tower whose patches are `patch_size` pixels wide.

    Attributes:
      corner: patches along the edge of the single tile, where it is smaller than `config` says; see `within`.

    Raises:
      ConfigError: a tile is smaller than one patch.
    """

    config: PreprocessConfig
    patch_size: int
    corner: int | None = None

    def __post_init__(self):
        if not 1 <= self.patch_size <= self.config.tile_size:
            raise ConfigError(
                f"expected 1 to {self.config.tile_size} (one tile), got {self.patch_size}",
                where="patch_size",
                fix="Make the checkpoint's vision config and its preprocessor file agree.",
            )

    @property
    def cell(self) -> int:
        """Pixels along one edge of what becomes one visual token."""
        return self.patch_size

    @property
    def values_config(self) -> PreprocessConfig:
        """How bytes become pixel values."""
        return self.config

    def geometry(self, image_size: Size) -> TileGeometry:
        """The tiles of a picture of (height, width) pixels; no pixel is needed.

        Raises:
          ImageError: the picture is so elongated that the reference's way of resizing it takes gigabytes.
        """
        self._check_intermediate(image_size)
        tile, grid = self.config.tile_size, None
        if self.config.pinpoints is not None:
            height, width = select_best_resolution(image_size, self.config.pinpoints)
            grid = height // tile, width // tile
        # A rest narrower than a patch is not seen, as by the tower's convolution (SigLIP: 384 = 27 x 14 + 6).
        return TileGeometry(side=tile // self.patch_size, image_size=image_size, grid=grid, corner=self.corner)

    def within(self, image_size: Size, patches: int) -> "Preprocessor":
        """Makes the most of a picture of (height, width) pixels that at most so many patches can show.

        The first that they pay for: what the model would see; the best smaller canvas, with its overview; the overview
        alone; the single tile, resized to fewer patches.
        """
        config, tile = self.config, self.config.tile_size
        geometry = self.geometry(image_size)
        if len(geometry.order()) <= patches:
            return self
        if config.pinpoints is not None:
            grids = ((canvas, (canvas[0] // tile, canvas[1] // tile)) for canvas in config.pinpoints)
            of_grid = ((canvas, dataclasses.replace(geometry, grid=grid)) for canvas, grid in grids)
            paid = tuple(canvas for canvas, smaller in of_grid if len(smaller.order()) <= patches)
            if paid:
                return dataclasses.replace(self, config=dataclasses.replace(config, pinpoints=paid))
            config = dataclasses.replace(config, pinpoints=None, size=(tile, tile), crop_size=None)
        whole = patches >= geometry.patches_per_tile
        return dataclasses.replace(self, config=config, corner=None if whole else math.isqrt(patches))

    def __call__(self, image: Image.Image) -> ProcessedImage:
        """Cuts an RGB picture (see `open_image`) into tiles of pixel values.

        Raises:
          ImageError: the picture is not RGB, or too elongated (see `geometry`).
        """
        check_rgb(image)
        geometry = self.geometry((image.height, image.width))
        if self.config.pad_to_square:
            image = self._padded(image)
        tiles = [image] if self.config.pinpoints is None else self._anyres(image)
        tiles = [self._fit(tile) for tile in tiles]
        if self.corner is not None:
            tiles = [self._resized(tile, (self.corner * self.patch_size,) * 2) for tile in tiles]
        return ProcessedImage(self.values(np.stack([np.asarray(tile) for tile in tiles])), geometry)

    def pictures(self, images: Sequence[Image.Image], limit: Limit | None = None) -> list[ProcessedImage]:
        """All pictures of one prompt, none of more patches than the limit."""
        return [self._limited(image, limit) for image in images]

    def _limited(self, image: Image.Image, limit: Limit | None) -> ProcessedImage:
        if limit is None:
            return self(image)
        image_size = image.height, image.width
        geometry = self.geometry(image_size)
        return dataclasses.replace(self.within(image_size, limit(geometry))(image), unlimited=geometry)

    def _check_intermediate(self, image_size: Size) -> None:
        check_size(image_size)
        short, long = sorted(image_size)
        if self.config.pad_to_square:
            needed = long, long
        elif self.config.pinpoints is None and isinstance(self.config.size, int):
            needed = _shortest_edge_size((short, long), self.config.size)
        else:
            return
        if needed[0] * needed[1] > MAX_INTERMEDIATE_PIXELS:
            raise ImageError(
                f"a picture of {image_size[0]} x {image_size[1]} pixels is too elongated: preparing it as the model "
                f"expects takes one of {needed[0]:,} x {needed[1]:,} pixels",
                where="image",
                fix="Crop it, or pad it to a less extreme shape.",
            )

    def _padded(self, image: Image.Image) -> Image.Image:
        """The picture in the middle of a square of the mean colour."""
        if image.width == image.height:
            return image
        red, green, blue = (int(value * 255) for value in self.config.mean)
        return _centred(image, (max(image.size), max(image.size)), (red, green, blue))

    def _anyres(self, image: Image.Image) -> list[Image.Image]:
        """The overview (the picture squashed), and the canvas cut into tiles."""
        config, tile = self.config, self.config.tile_size
        assert config.pinpoints is not None
        canvas_size = select_best_resolution((image.height, image.width), config.pinpoints)
        fitted = self._resized(image, fit_inside((image.height, image.width), canvas_size))
        canvas = _centred(fitted, canvas_size, (0, 0, 0))
        corners = [(x, y) for y in range(0, canvas.height, tile) for x in range(0, canvas.width, tile)]
        overview_size = (config.size, config.size) if isinstance(config.size, int) else config.size
        assert overview_size is not None
        return [self._resized(image, overview_size), *(canvas.crop((x, y, x + tile, y + tile)) for x, y in corners)]

    def _fit(self, image: Image.Image) -> Image.Image:
        """Resizes and crops to the size of a tile."""
        if self.config.size is not None:
            size = self.config.size
            new = _shortest_edge_size((image.height, image.width), size) if isinstance(size, int) else size
            image = self._resized(image, new)
        if self.config.crop_size is not None:
            height, width = self.config.crop_size
            top, left = (image.height - height) // 2, (image.width - width) // 2
            image = image.crop((left, top, left + width, top + height))  # black outside the picture
        return image

    def _resized(self, image: Image.Image, size: Size) -> Image.Image:
        return image.resize((size[1], size[0]), resample=Image.Resampling(self.config.resample))

    def values(self, pixels: UInt8[np.ndarray, "P H W 3"]) -> Float32[np.ndarray, "P 3 H W"]:
        """Rescales and normalises bytes."""
        return np.stack([self._table[channel][pixels[..., channel]] for channel in range(3)], axis=1)

    @functools.cached_property
    def _table(self) -> Float32[np.ndarray, "3 256"]:
        """The pixel value of each byte, rounded at the same places as in transformers."""
        config = self.config
        value = np.arange(256, dtype=np.float64)
        if config.rescale_factor is not None:
            value = value * config.rescale_factor
        table = np.tile(value.astype(np.float32), (3, 1))
        if config.do_normalize:
            mean, std = (np.array(values, np.float32)[:, None] for values in (config.mean, config.std))
            table = (table - mean) / std
        return table


def check_rgb(image: Image.Image) -> None:
    """Raises an ImageError unless the picture is RGB."""
    if image.mode != "RGB":
        raise ImageError(f"expected mode RGB, got {image.mode}", where="image", fix="Open it with `open_image`.")


def check_size(image_size: Size) -> None:
    """Raises an ImageError unless there is at least one pixel."""
    if min(image_size) < 1:
        raise ImageError(f"expected a positive height and width, got {image_size}", where="image")


def _shortest_edge_size(image_size: Size, edge: int) -> Size:
    """Size of a picture whose shorter edge is resized to `edge`. Source: `get_resize_output_image_size`."""
    height, width = image_size
    if width <= height:
        return int(edge * height / width), edge
    return edge, int(edge * width / height)


def _centred(image: Image.Image, size: Size, color: tuple[int, int, int]) -> Image.Image:
    """The picture on a canvas of (height, width); of an odd margin, the larger half is below and to the right."""
    canvas = Image.new("RGB", (size[1], size[0]), color)
    canvas.paste(image, ((canvas.width - image.width) // 2, (canvas.height - image.height) // 2))
    return canvas
