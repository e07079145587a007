"""From an RGB picture to the pixel values of its tiles, as VILA checkpoints want them.

Sources: VILA (arXiv 2312.07533), NVILA (arXiv 2412.04468), S2 (arXiv 2403.13043).
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32
from PIL import Image

from vila_jax.errors import BudgetError
from vila_jax.vision.geometry import Arrangement, Size, TileGeometry
from vila_jax.vision.preprocess import Limit, Preprocessor, ProcessedImage, check_rgb, check_size
from vila_jax.vision.preprocess_config import PreprocessConfig
from vila_jax.vision.scales import ScaleMap, repeated_map, resize_bicubic, scale_map
from vila_jax.vision.tiling import closest_grid, split_tiles
from vila_jax.vision.vila_config import Mode, VilaPictures

_ARRANGEMENTS: dict[Mode, Arrangement] = {"dynamic": "tiles", "dynamic_s2": "blocks"}


@dataclasses.dataclass(frozen=True)
class VilaPreprocessor:
    """Prepares pictures for a VILA checkpoint.

    A picture that is `alone` in its prompt may be cut into a grid of tiles (modes `dynamic` and `dynamic_s2`); pictures
    among others, and the frames of a video, are a single tile each.

    Attributes:
      most: tiles of a grid at most, where these are fewer than `config` says; see `within`.
      corner: visual tokens along the edge of the single tile, where it is smaller than `config` says.
    """

    config: VilaPictures
    most: int | None = None
    corner: int | None = None

    @property
    def cell(self) -> int:
        """Pixels along one edge of what becomes one visual token."""
        return self.config.tile_size // self.config.side * self.config.window

    @property
    def values_config(self) -> PreprocessConfig:
        """How bytes become pixel values."""
        return self._processor.config

    def geometry(self, image_size: Size, *, alone: bool = True) -> TileGeometry:
        """The tiles of a picture of (height, width) pixels, or its blocks at several scales; no pixel is needed.

        Raises:
          ImageError: no pixel at all, or a picture so elongated that preparing it takes gigabytes.
        """
        check_size(image_size)
        config, grids = self.config, self._grids(image_size, alone)
        if not grids:
            self._processor.geometry(image_size)  # refuses elongated pictures
        grid = None
        if grids and config.mode in _ARRANGEMENTS:
            grid = grids[config.resize_to] if config.scales else grids[-1]
        return TileGeometry(
            side=config.cells,
            image_size=image_size,
            grid=None if grid == (1, 1) else grid,
            arrangement=_ARRANGEMENTS.get(config.mode, "anyres"),
            column_major=config.column_major,
            corner=self.corner,
        )

    def within(self, image_size: Size, tokens: int, *, alone: bool = True) -> "VilaPreprocessor":
        """Makes the most of a picture of (height, width) pixels that at most so many visual tokens can show.

        The first that they pay for: what the model would see; the most tiles; the single tile, resized to fewer
        patches.

        Raises:
          BudgetError: a model that sees several scales makes more tokens of every picture.
        """
        config = self.config
        fewest = config.grid_limits[0] if config.mode == "dynamic_s2" else 1
        least = 0
        for most in range(config.max_tiles, fewest - 1, -1) if config.mode in _ARRANGEMENTS else (None,):
            smaller = dataclasses.replace(self, most=most)
            least = len(smaller.geometry(image_size, alone=alone).order())
            if least <= tokens:
                return smaller
        if config.scales:
            raise BudgetError(
                f"a picture is seen at several scales, which takes {least} visual tokens; {tokens} are too few",
                where="budget method 'downsample'",
                fix="Use another method, or keep more.",
            )
        return dataclasses.replace(self, most=1, corner=math.isqrt(tokens))

    def __call__(self, image: Image.Image, *, alone: bool = True) -> ProcessedImage:
        """Cuts an RGB picture (see `open_image`) into tiles of pixel values.

        Raises:
          ImageError: the picture is not RGB, or too elongated (see `geometry`).
        """
        check_rgb(image)
        image_size = image.height, image.width
        geometry = self.geometry(image_size, alone=alone)
        grids = self._grids(image_size, alone)
        views = self._views(image, grids)
        pixels = np.concatenate([split_tiles(view, self._edge) for view in views])
        return ProcessedImage(pixels, geometry, self._scale_map(grids))

    def pictures(self, images: Sequence[Image.Image], limit: Limit | None = None) -> list[ProcessedImage]:
        """All pictures of one prompt, none of more visual tokens than the limit."""
        return [self._limited(image, limit, alone=len(images) == 1) for image in images]

    def _limited(self, image: Image.Image, limit: Limit | None, *, alone: bool) -> ProcessedImage:
        if limit is None:
            return self(image, alone=alone)
        image_size = image.height, image.width
        geometry = self.geometry(image_size, alone=alone)
        smaller = self.within(image_size, limit(geometry), alone=alone)
        return dataclasses.replace(smaller(image, alone=alone), unlimited=geometry)

    def frames(self, images: Sequence[Image.Image]) -> list[ProcessedImage]:
        """The frames of a video that is pooled."""
        return [self(image, alone=False) for image in images]

    def _grids(self, image_size: Size, alone: bool) -> tuple[Size, ...]:
        """(rows, columns) of the tiles of every view of the picture; none where the tower's processor makes one."""
        config = self.config
        if config.mode == "s2":
            return config.squares
        if config.mode not in _ARRANGEMENTS or not alone:
            return ()
        fewest, most = config.grid_limits
        most = most if self.most is None else self.most
        grid = closest_grid(image_size, config.tile_size, min(fewest, most), most)
        if config.mode == "dynamic_s2":
            return (*config.squares[:-1], grid)
        return ((1, 1), grid) if grid != (1, 1) else (grid,)

    def _views(self, image: Image.Image, grids: tuple[Size, ...]) -> list[Float32[np.ndarray, "3 H W"]]:
        """The whole picture as often as there are grids, squashed to each of them."""
        if not grids:
            return list(self._processor(image).pixels)
        tile = self._edge
        sizes = [(rows * tile, columns * tile) for rows, columns in grids]
        if self.config.mode != "s2":
            return [self._squashed(image, size) for size in sizes]
        largest = self._squashed(image, sizes[-1])  # S2 takes the smaller scales from normalised pixels
        return [resize_bicubic(largest, size) for size in sizes]

    def _squashed(self, image: Image.Image, size: Size) -> Float32[np.ndarray, "3 H W"]:
        resized = image.resize((size[1], size[0]), resample=Image.Resampling(self.config.resample))
        return self._processor.values(np.asarray(resized)[None])[0]

    def _scale_map(self, grids: tuple[Size, ...]) -> ScaleMap | None:
        config = self.config
        if not config.scales:
            return None
        if not grids:
            return repeated_map(config.side, len(config.scales), config.scale_window)
        blocks = (1, 1) if config.mode == "s2" else grids[config.resize_to]
        return scale_map(grids, config.side, blocks, config.block_side, config.scale_window)

    @property
    def _edge(self) -> int:
        """Pixels along one edge of a tile."""
        return self.config.tile_size if self.corner is None else self.corner * self.cell

    @functools.cached_property
    def _processor(self) -> Preprocessor:
        """What the tower's own processor does: one tile."""
        config, edge = self.config, self.config.tile_size
        square = edge, edge
        crops = config.center_crop and config.mode != "resize"
        settings = PreprocessConfig(
            pad_to_square=config.mode == "pad",
            pinpoints=None,
            size=edge if crops else square,
            resample=config.resample,
            crop_size=square if crops else None,
            rescale_factor=1 / 255,
            do_normalize=True,
            mean=config.mean,
            std=config.std,
        )
        corner = None if self.corner is None else self.corner * config.window
        return Preprocessor(settings, edge // config.side, corner)
