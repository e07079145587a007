"""How a picture is cut into tiles, and in which order its patches become tokens.

Everything here follows from the picture's *size* alone, so that the number and the order of the visual tokens are known
before a pixel is read.  A LLaVA-NeXT picture of 300 x 700 pixels on a 1 x 3 grid of tiles of `side` patches:

    tile 0: the whole picture, squashed       tiles 1, 2, 3: the picture at full resolution, padded ("mosaic")
    +-------+                                 +-------+-------+-------+
    |  0    |                                 |..#####|#######|#####..|   # picture   . padding
    |       |                                 |..#####|#######|#####..|
    +-------+                                 +-------+-------+-------+

    token order: tile 0 in raster order, then each row of the *mosaic*, padding cut off, a newline token after each row

This is the arrangement "anyres". VILA has two more, whose mosaic the picture fills without padding:

    "tiles"    dynamic      the same tiles; in token order the grid comes first, tile by tile, and the overview last;
                            every tile is a medium of its own in the prompt
    "blocks"   dynamic S2   only the mosaic, no overview, row by row across all blocks

A *patch* is one visual token: where the projector merges windows of the tower's patches, it is a merged window (a
"cell").  It is named by its flat index `tile * side**2 + row * side + column`.
"""

import dataclasses
import math
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

Size = tuple[int, int]
"""(height, width), in pixels, in patches or in tiles."""

Arrangement = Literal["anyres", "tiles", "blocks"]


@dataclasses.dataclass(frozen=True)
class TileGeometry:
    """The tiles of one picture.

    Attributes:
      side: patches along one edge of a tile, after merging.
      image_size: (height, width) of the original picture, in pixels.
      grid: (rows, columns) of full-resolution tiles, or None when the picture is a single tile.
      arrangement: what the tiles show and how they follow each other, see above; of no effect on a single tile.
      column_major: whether the tokens inside a tile come column by column, as from the projectors before NVILA
        ("tiles" and single tiles). Flat indices stay row-major.
      corner: of a single tile that is smaller than the model's, patches along its edge: they are the upper left ones of
        a whole tile, whose other patches do not exist. None is a whole tile.
    """

    side: int
    image_size: Size
    grid: Size | None = None
    arrangement: Arrangement = "anyres"
    column_major: bool = False
    corner: int | None = None

    @property
    def has_overview(self) -> bool:
        """Whether tile 0 shows the whole picture."""
        return self.grid is None or self.arrangement != "blocks"

    @property
    def num_tiles(self) -> int:
        """`P`: the overview tile, and the tiles of the grid."""
        return self.has_overview + (math.prod(self.grid) if self.grid else 0)

    @property
    def patches_per_tile(self) -> int:
        return self.side**2

    @property
    def num_patches(self) -> int:
        """Patches of all tiles, padding included."""
        return self.num_tiles * (self.patches_per_tile if self.corner is None else self.corner**2)

    def picture_box(self) -> tuple[int, int, int, int]:
        """(top, bottom, left, right) of the picture inside the mosaic, in patches; what is outside is padding.

        Source: `unpad_image` of LLaVA-NeXT, whose rounding is kept.
        """
        if self.grid is None:
            return 0, self.side, 0, self.side
        rows, columns = (n * self.side for n in self.grid)
        if self.arrangement != "anyres":
            return 0, rows, 0, columns
        height, width = self.image_size
        if width / height > columns / rows:
            margin = (rows - int(round(height * (columns / width), 7))) // 2
            return margin, rows - margin, 0, columns
        margin = (columns - int(round(width * (rows / height), 7))) // 2
        return 0, rows, margin, columns - margin

    def mosaic(self) -> Int[np.ndarray, "rows columns"]:
        """Flat patch index of every cell of the mosaic, padding cut off."""
        if self.grid is None:
            return np.zeros((0, 0), np.int32)
        cells = tile_mosaic(self.grid, self.side, first_tile=int(self.has_overview))
        top, bottom, left, right = self.picture_box()
        return cells[top:bottom, left:right]

    def overview(self) -> Int[np.ndarray, " patches"]:
        """Flat patch index of every patch of the overview, the whole picture in raster order."""
        return self._square(0).reshape(-1) if self.has_overview else np.zeros(0, np.int32)

    def segments(self, newline: int) -> list[Int[np.ndarray, " tokens"]]:
        """Flat patch indices in token order, one array for each medium that the picture is in the prompt.

        Args:
          newline: the index that stands after each row of the mosaic ("anyres" alone has such).
        """
        if self.grid is None or self.arrangement == "tiles":
            return [self._tile(tile) for tile in (*range(1, self.num_tiles), 0)]
        mosaic = self.mosaic()
        if self.arrangement == "blocks":
            return [mosaic.reshape(-1)]
        column = np.full((mosaic.shape[0], 1), newline, np.int32)
        return [np.concatenate([self.overview(), np.concatenate([mosaic, column], axis=1).reshape(-1)])]

    def _tile(self, tile: int) -> Int[np.ndarray, " patches"]:
        """Flat patch index of every patch of one tile, in token order."""
        patches = self._square(tile)
        return (patches.T if self.column_major else patches).reshape(-1)

    def _square(self, tile: int) -> Int[np.ndarray, "rows columns"]:
        """Flat patch index of every patch of one tile, as it lies."""
        patches = tile * self.patches_per_tile + np.arange(self.patches_per_tile, dtype=np.int32)
        return patches.reshape(self.side, self.side)[: self.corner, : self.corner]

    def order(self) -> Int[np.ndarray, " tokens"]:
        """Flat patch index of every real (not padding) patch, in the order in which they become tokens."""
        tokens = self.order_with_newlines(-1)
        return tokens[tokens >= 0]

    def order_with_newlines(self, newline: int) -> Int[np.ndarray, " tokens"]:
        """As `order`, with the index `newline` after each row of an "anyres" mosaic."""
        return np.concatenate(self.segments(newline))

    def real(self) -> Bool[np.ndarray, "P N"]:
        """True where a patch shows the picture, False where it shows padding."""
        mask = np.zeros(self.num_tiles * self.patches_per_tile, bool)
        mask[self.order()] = True
        return mask.reshape(self.num_tiles, self.patches_per_tile)

    def regions(self) -> Int[np.ndarray, " N"]:
        """For each patch of an overview, the full-resolution tile (0-based in the grid) whose share of it it shows.

        The overview is divided evenly among the tiles (a patch belongs to the tile that holds its centre); a picture
        of blocks, which has none, gets what one would show.
        """
        rows, columns = self.grid or (1, 1)
        centre = 2 * np.arange(self.side, dtype=np.int32) + 1
        row, column = (centre * rows) // (2 * self.side), (centre * columns) // (2 * self.side)
        return (row[:, None] * columns + column[None, :]).reshape(-1)


def tile_mosaic(grid: Size, side: int, first_tile: int = 0) -> Int[np.ndarray, "rows columns"]:
    """Flat patch index of every cell of a mosaic of `grid` tiles, numbered row by row from `first_tile`."""
    (rows, columns), patches = grid, side * side
    cells = np.arange(rows * columns * patches, dtype=np.int32) + np.int32(first_tile * patches)
    return cells.reshape(rows, columns, side, side).transpose(0, 2, 1, 3).reshape(rows * side, columns * side)


def select_best_resolution(image_size: Size, resolutions: tuple[Size, ...]) -> Size:
    """The canvas that keeps most of the picture's pixels and, among those, wastes least.

    Source: `select_best_resolution` of LLaVA-NeXT; the first one wins a tie.
    """
    height, width = image_size

    def merit(canvas: Size) -> tuple[int, int]:
        canvas_height, canvas_width = canvas
        scale = min(canvas_width / width, canvas_height / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - canvas_width * canvas_height

    return max(resolutions, key=merit)


def fit_inside(image_size: Size, canvas: Size) -> Size:
    """Size of the picture scaled to touch the canvas from inside. Source: `get_patch_output_size` of LLaVA-NeXT."""
    (height, width), (canvas_height, canvas_width) = image_size, canvas
    scale_height, scale_width = canvas_height / height, canvas_width / width
    if scale_width < scale_height:
        return min(math.ceil(height * scale_width), canvas_height), canvas_width
    return canvas_height, min(math.ceil(width * scale_height), canvas_width)
