"""How a VILA checkpoint cuts and normalises its pictures."""

import dataclasses
import functools
from typing import Literal

from PIL import Image

from vila_jax.errors import ConfigError
from vila_jax.vision.geometry import Size
from vila_jax.vision.scales import widest_window
from vila_jax.vision.tiling import candidate_grids

Triple = tuple[float, float, float]

Mode = Literal["resize", "pad", "default", "s2", "dynamic", "dynamic_s2"]
"""What becomes of a picture:

    resize        one tile: squashed
    pad           one tile: centred on a square of the mean colour
    default       one tile: whatever the tower's own processor does
    s2            squashed to every scale, each cut into tiles
    dynamic       cut into the grid of tiles nearest to its shape, and the whole picture squashed into one more
    dynamic_s2    as s2, but the largest scale is the grid nearest to its shape
"""


@dataclasses.dataclass(frozen=True)
class VilaPictures:
    """How pictures become tiles. `vila_jax.hf.vila_pictures` reads it from a checkpoint.

    Attributes:
      mode: how a picture is cut.
      tile_size: pixels along one edge of a tile.
      mean, std: of red, green and blue, after scaling to 0..1.
      resample: Pillow's number of the resampling filter.
      side: patches along one edge of a tile.
      window: patches along one edge of the windows that the projector merges.
      column_major: whether merged tokens come column by column.
      min_tiles, max_tiles: bounds on the number of tiles of a grid.
      scales: edges in pixels, smallest first (S2 and dynamic S2).
      resize_to: index of the scale to whose size all feature maps are brought.
      center_crop: whether the tower's own processor (`default`) crops what is not square, as CLIP's does, rather than
        squashing it.

    Raises:
      ConfigError: values that no picture could be cut by.
    """

    mode: Mode
    tile_size: int
    mean: Triple
    std: Triple
    resample: int
    side: int
    window: int
    column_major: bool
    min_tiles: int = 1
    max_tiles: int = 12
    scales: tuple[int, ...] = ()
    resize_to: int = 0
    center_crop: bool = False

    def __post_init__(self):
        _require(self.tile_size >= 1, "image_size", f"tiles of {self.tile_size} pixels")
        fits = 1 <= self.side <= self.tile_size
        _require(fits, "patch_size", f"tiles of {self.tile_size} pixels and {self.side} patches along an edge")
        fits = 1 <= self.window <= self.side
        _require(fits, "mm_projector_type", f"windows of {self.window} patches in tiles of {self.side}")
        _require(all(self.std), "image_std", "zero would be divided by")
        _require(self.resample in list(Image.Resampling), "resample", f"{self.resample} is no filter of Pillow")
        self._check_order()
        self._check_scales()
        self._check_grid()

    def _check_order(self) -> None:
        """Only merging windows ever changed the order, and only before there was dynamic S2."""
        known = not self.column_major or (self.window > 1 and self.mode != "dynamic_s2")
        what = f"no column-major order of tokens is known for windows of {self.window} patches and {self.mode!r}"
        _require(known, "era", what, fix="Use the era `nvila`, or leave it to be found out.")

    def _check_scales(self) -> None:
        key = "s2_scales"
        if self.mode not in ("s2", "dynamic_s2"):
            _require(not self.scales, key, f"scales {self.scales} mean nothing to {self.mode!r}")
            return
        tiled = all(scale > 0 and scale % self.tile_size == 0 for scale in self.scales)
        ordered = self.scales == tuple(sorted(set(self.scales)))
        _require(
            bool(self.scales) and tiled and ordered,
            key,
            f"expected growing multiples of a tile of {self.tile_size} pixels, got {self.scales}",
        )
        inside = 0 <= self.resize_to < len(self.scales)
        _require(inside, "s2_resize_output_to_scale_idx", f"{self.resize_to} with {len(self.scales)} scales")
        starts_at_tile = self.mode == "s2" or self.scales[0] == self.tile_size
        _require(starts_at_tile, key, f"the smallest must be one tile of {self.tile_size} pixels, got {self.scales}")

    def _check_grid(self) -> None:
        if self.mode in ("dynamic", "dynamic_s2"):
            fewest, most = self.grid_limits
            fits = 1 <= fewest <= most
            _require(fits, "max_tiles", f"no grid has at least {fewest} and at most {most} tiles")

    @property
    def grid_limits(self) -> tuple[int, int]:
        """Fewest and most tiles of the grid of a dynamic mode; dynamic S2 never goes below its square."""
        fewest = (self.scales[-1] // self.tile_size) ** 2 if self.scales else self.min_tiles
        return fewest, self.max_tiles

    @property
    def squares(self) -> tuple[Size, ...]:
        """(rows, columns) of the tiles of every scale of a square picture."""
        return tuple((scale // self.tile_size,) * 2 for scale in self.scales)

    @property
    def block_side(self) -> int:
        """Vectors along one edge of what the projector sees at once: a tile, or the whole map of S2."""
        return self.side * (self.squares[self.resize_to][0] if self.mode == "s2" else 1)

    @property
    def cells(self) -> int:
        """Visual tokens along one edge of what the projector sees at once."""
        return -(-self.block_side // self.window)

    @functools.cached_property
    def scale_window(self) -> int:
        """Most patches of one scale that a vector of any picture averages: `W` of `ScaleMap`."""
        largest = self.squares[-1:] if self.mode == "s2" else candidate_grids(*self.grid_limits)
        return max(
            widest_window(grid[0], blocks[0]) * widest_window(grid[1], blocks[1])  # the same for tiles as for patches
            for grids in ((*self.squares[:-1], grid) for grid in largest)
            for blocks in (grids[self.resize_to],)
            for grid in grids
        )


def _require(holds: bool, key: str, what: str, fix: str = "Correct the checkpoint's config files.") -> None:
    if not holds:
        raise ConfigError(what, where=f"pictures, key `{key}`", fix=fix)
