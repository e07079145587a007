"""The drawing: pixels go back to where they came from, kept patches are bright and counted, and nothing overlaps."""

import numpy as np
import pytest
from PIL import Image

from vila_jax.cli import overlay
from vila_jax.infer.chosen import Chosen
from vila_jax.vision.geometry import TileGeometry
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
    chosen = Chosen.of_patches(kept, TileGeometry(SIDE, (56, 56), (2, 2)))
    white = overlay.View(view.name, np.full_like(view.pixels, 255), view.cells, ())
    drawn = np.asarray(overlay._draw_view(white, (10, 10), chosen).convert("L"))
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
    chosen = Chosen.of_patches(kept, image.geometry)
    overlay.draw(preprocessor, [overlay.Choice("x:6", image, chosen, 6, 88)], "heading")
    assert labels == ["2 of 16", "3 of 16", "0 of 16", "0 of 16", "1 of 16"]


@pytest.mark.parametrize(
    ("height", "width", "model_type"),
    [(28, 28, "llava"), (56, 56, "llava_next"), (5, 90, "llava_next"), (200, 3, "llava_next"), (1, 1, "llava_next")],
)
def test_any_shape_can_be_drawn(height, width, model_type):
    _, preprocessor, image = _prepared(height, width, model_type)
    kept = image.geometry.order()[::2]
    chosen, names = Chosen.of_patches(kept, image.geometry), ("short", "a long name of a budget " * 9)
    choices = [overlay.Choice(name, image, chosen, len(kept), 100) for name in names]
    one = overlay.draw(preprocessor, choices[:1], "heading")
    two = overlay.draw(preprocessor, choices, "a very long heading " * 20)
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


def test_merged_patches_share_a_colour():
    """Of a token of four patches, a patch by itself, and a token of two that no patch stands for."""
    clusters = np.full(SIDE**2, -1)
    clusters[[0, 1, 4, 5]], clusters[3], clusters[[10, 11]] = 0, 1, 2
    chosen = Chosen(np.array([0, 3, -1]), np.zeros(3, int), clusters)
    view = overlay.View("x", np.full((28, 28, 3), 255, np.uint8), np.arange(SIDE**2).reshape(SIDE, SIDE), ())
    drawn = np.asarray(overlay._draw_view(view, (10, 10), chosen)).astype(int)
    middle = drawn[5::10, 5::10].reshape(-1, 3)
    stands, colour, grey = middle[0], middle[1], middle[10]
    assert (middle[3] == 255).all() and (stands >= colour).all() and stands.sum() > colour.sum() + 50
    assert (middle[[4, 5]] == colour).all() and np.ptp(colour) > 50
    assert (middle[11] == grey).all() and np.ptp(grey) < 20
    dropped = middle[np.flatnonzero(clusters < 0)]
    assert (dropped == dropped[0]).all() and dropped.max() < 90
    assert (drawn[5, 10] == colour).all()  # no line inside of a cluster
    assert (drawn[5, 19] != colour).any() and (drawn[5, 30] == overlay._ACCENT).all()  # lines at its end, and at others


def _noise(height, width):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _scaled(mode, scales, resize_to):
    half = (0.5, 0.5, 0.5)
    return VilaPreprocessor(
        VilaPictures(mode, 30, half, half, 3, 6, 2, False, max_tiles=16, scales=scales, resize_to=resize_to)
    )


@pytest.mark.parametrize(("resize_to", "edge"), [(0, 30), (1, 60), (2, 120)])
def test_of_several_scales_the_one_that_blocks_lie_on_is_shown(resize_to, edge):
    preprocessor, picture = _scaled("dynamic_s2", (30, 60, 120), resize_to), _noise(120, 120)
    view = overlay.make_views(preprocessor(picture), preprocessor)[-1]
    np.testing.assert_array_equal(view.pixels, picture.resize((edge, edge), Image.Resampling.BICUBIC))
    assert view.cells.shape == (edge // 10, edge // 10)


def test_scales_in_a_single_block():
    preprocessor, picture = _scaled("s2", (30, 60), 1), _noise(60, 60)
    [view] = overlay.make_views(preprocessor(picture), preprocessor)
    np.testing.assert_array_equal(view.pixels, picture)
    assert view.cells.shape == (6, 6)


def test_a_smaller_tile_is_shown_small():
    _, preprocessor, _ = _prepared(28, 28, "llava")
    small = preprocessor.within((28, 28), 10)
    [view] = overlay.make_views(small(_noise(28, 28)), small)
    assert view.pixels.shape == (3 * PATCH, 3 * PATCH, 3) and view.cells.tolist() == [[0, 1, 2], [4, 5, 6], [8, 9, 10]]
