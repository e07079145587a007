"""The drawing: pixels go back to where they came from, kept patches are bright and counted, and nothing overlaps."""

import numpy as np
import pytest
from PIL import Image

from vila_jax.cli import overlay
from vila_jax.vision.preprocess import PreprocessConfig, Preprocessor
from vila_jax.vision.vila import VilaPreprocessor
from vila_jax.vision.vila_config import VilaPictures

SIDE, PATCH = 4, 7
NEXT = {
    "do_resize": True,
    "size": {"shortest_edge": 28},
    "do_center_crop": True,
    "crop_size": {"height": 28, "width": 28},
    "do_normalize": True,
    "image_grid_pinpoints": [[28, 56], [56, 28], [56, 56]],
}


def _prepared(height, width, model_type="llava_next"):
    """A picture of noise, and its tiles."""
    pixels = np.random.default_rng(height + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    config = PreprocessConfig.from_hf(NEXT, model_type=model_type)
    preprocessor = Preprocessor(config, PATCH)
    return pixels, preprocessor, preprocessor(Image.fromarray(pixels))


def test_pixel_values_go_back_to_colours():
    pixels, preprocessor, image = _prepared(28, 28, "llava")  # of the size of a tile, so that nothing is resized
    np.testing.assert_array_equal(overlay.to_bytes(image.pixels, preprocessor.config), pixels[None])


@pytest.mark.parametrize(("height", "width", "grid"), [(28, 56, (1, 2)), (56, 28, (2, 1)), (56, 56, (2, 2))])
def test_tiles_are_put_together_again(height, width, grid):
    pixels, preprocessor, image = _prepared(height, width)  # fills its canvas, so that the mosaic is the picture itself
    overview, mosaic = overlay.make_views(image, preprocessor)
    np.testing.assert_array_equal(mosaic.pixels, pixels)
    assert overview.pixels.shape == (28, 28, 3)
    assert mosaic.tiles == tuple(
        (row * SIDE, (row + 1) * SIDE, column * SIDE, (column + 1) * SIDE)
        for row in range(grid[0])
        for column in range(grid[1])
    )


@pytest.mark.parametrize(("height", "width"), [(28, 45), (17, 56), (50, 20), (13, 11)])
def test_padding_is_not_shown_and_every_real_patch_is_shown_once(height, width):
    _, preprocessor, image = _prepared(height, width)
    views = overlay.make_views(image, preprocessor)
    shown = np.concatenate([view.cells.reshape(-1) for view in views])
    np.testing.assert_array_equal(np.sort(shown), np.flatnonzero(image.geometry.real().reshape(-1)))
    for view in views:
        assert view.pixels.shape == (view.cells.shape[0] * PATCH, view.cells.shape[1] * PATCH, 3)
        covered = np.zeros(view.cells.shape, int)
        for top, bottom, left, right in view.tiles:
            covered[top:bottom, left:right] += 1
        assert (covered == 1).all()


def _panel(view, kept):
    """The drawn view of a white picture, cell by cell: whether the middle of each is bright."""
    mask = np.zeros(5 * SIDE**2, bool)
    mask[kept] = True
    white = overlay.View(view.name, np.full_like(view.pixels, 255), view.cells, ())
    drawn = np.asarray(overlay._draw_view(white, (10, 10), mask).convert("L"))
    return drawn[5::10, 5::10] == 255


def test_exactly_the_kept_patches_are_bright():
    _, preprocessor, image = _prepared(40, 56)
    kept = np.random.default_rng(1).permutation(image.geometry.order())[:17]
    for view in overlay.make_views(image, preprocessor):
        np.testing.assert_array_equal(_panel(view, kept), np.isin(view.cells, kept))


def test_every_tile_says_how_many_of_its_patches_are_kept(monkeypatch):
    labels = []
    monkeypatch.setattr(overlay, "_badge", lambda panel, corner, text: labels.append(text))
    _, preprocessor, image = _prepared(56, 56)
    kept = np.array([0, 3, 16, 17, 18, 79])  # two of the overview, three of the first tile, one of the last
    overlay.draw(image, preprocessor, [overlay.Choice("x:6", kept, 6, 88)], "heading")
    assert labels == ["2 of 16", "3 of 16", "0 of 16", "0 of 16", "1 of 16"]


@pytest.mark.parametrize(
    ("height", "width", "model_type"),
    [(28, 28, "llava"), (56, 56, "llava_next"), (5, 90, "llava_next"), (200, 3, "llava_next"), (1, 1, "llava_next")],
)
def test_any_shape_can_be_drawn(height, width, model_type):
    _, preprocessor, image = _prepared(height, width, model_type)
    kept = image.geometry.order()[::2]
    choices = [overlay.Choice(name, kept, len(kept), 100) for name in ("short", "a long name of a budget " * 9)]
    one = overlay.draw(image, preprocessor, choices[:1], "heading")
    two = overlay.draw(image, preprocessor, choices, "a very long heading " * 20)
    assert two.width == one.width <= 1600
    assert one.height < two.height < 2 * one.height


def test_vila_cells_are_windows_of_patches():
    """Five patches of six pixels merged in windows of two: three cells of twelve pixels, the last half black."""
    half = (0.5, 0.5, 0.5)
    pictures = VilaPictures("dynamic", 30, half, half, 3, side=5, window=2, column_major=False, max_tiles=4)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 60, 3), dtype=np.uint8)
    preprocessor = VilaPreprocessor(pictures)
    overview, mosaic = overlay.make_views(preprocessor(Image.fromarray(pixels)), preprocessor)
    assert overview.pixels.shape == (36, 36, 3) and mosaic.pixels.shape == (36, 72, 3)
    np.testing.assert_array_equal(mosaic.pixels[:30, :30], pixels[:, :30])
    np.testing.assert_array_equal(mosaic.pixels[:30, 36:66], pixels[:, 30:])
    assert mosaic.cells.shape == (3, 6)
