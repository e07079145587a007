"""Dense supervision for the vision tower: what is in each patch of a crop, and what is in the crop at all."""

import numpy as np
from jaxtyping import Bool, Int

from vila_jax.scenes.world import NUM_COLORS, NUM_CONTENTS, Scene

LEGIBLE = 0.75  # crop pixels per picture pixel below which digits and words cannot be read
_MIN_COVER = 0.15  # of a patch, for it to be labelled with what covers it


def patch_labels(
    scene: Scene, crop: tuple[int, int, int, int], *, tile_px: int = 48, patch: int = 8
) -> tuple[Int[np.ndarray, "P"], Int[np.ndarray, "P"]]:
    """What each patch shows when a crop of the picture is resized to a square tile.

    Args:
      scene: the scene.
      crop: `(x0, y0, x1, y1)` in picture pixels, end exclusive.
      tile_px: side of the tile that the crop is resized to.
      patch: side of a patch; divides `tile_px`.

    Returns:
      Colour ids (indices into `COLOR_LABELS`) and content ids (into `CONTENT_LABELS`) of the patches in raster order,
      `P = (tile_px / patch)^2`; 0 where nothing covers 15 % of the patch. The content of a card, plate or sign is what
      is written there (digit by digit), or its kind where the crop is shrunk too far to read it.
    """
    x0, y0, x1, y1 = crop
    centres = (np.arange(tile_px) + 0.5) / tile_px
    rows, columns = (y0 + centres * (y1 - y0)).astype(int), (x0 + centres * (x1 - x0)).astype(int)
    legible = tile_px >= LEGIBLE * max(x1 - x0, y1 - y0)
    codes = (scene.labels if legible else scene.kinds)[rows[:, None], columns[None, :]]

    n = tile_px // patch
    codes = codes.reshape(n, patch, n, patch).swapaxes(1, 2).reshape(n * n, patch * patch)
    # A tie goes to what is further left, so that no digit in a row of them loses on both sides.
    weights = np.tile(1 - 0.001 * np.arange(patch), patch)
    best, cover = np.zeros(n * n, int), np.full(n * n, _MIN_COVER * patch * patch)
    for code in np.unique(codes):
        if code:
            area = (codes == code) @ weights
            best, cover = np.where(area > cover, code, best), np.maximum(area, cover)
    return best // NUM_CONTENTS, best % NUM_CONTENTS


def presence(colors: Int[np.ndarray, "P"], contents: Int[np.ndarray, "P"]) -> Bool[np.ndarray, "Q"]:
    """Which (colour, content) pairs some patch shows: `Q = NUM_COLORS * NUM_CONTENTS`, content varying fastest."""
    present = np.zeros(NUM_COLORS * NUM_CONTENTS, bool)
    present[colors * NUM_CONTENTS + contents] = True
    present[0] = False  # background
    return present
