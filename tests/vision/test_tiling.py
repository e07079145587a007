"""VILA's grids, tiles and token orders against the reference."""

import json

import numpy as np
import pytest

from vila_jax.vision.geometry import TileGeometry
from vila_jax.vision.tiling import closest_grid, split_tiles
from vila_jax.vision.vila import VilaPreprocessor
from vila_jax.vision.vila_config import VilaPictures

HALF = (0.5, 0.5, 0.5)


def pictures(mode: str, tile: int, **others) -> VilaPictures:
    settings = {"resample": 3, "side": tile // 14, "window": 1, "column_major": False}
    return VilaPictures(mode=mode, tile_size=tile, mean=HALF, std=HALF, **(settings | others))


def test_choice_of_the_grid(golden):
    choices = json.loads((golden / "vila" / "preprocess" / "tiling_choice.json").read_text())
    for choice in choices:
        size, tile = (choice["height"], choice["width"]), choice["image_size"]
        if choice["mode"] == "dynamic":
            limits = {name: choice[name] for name in ("min_tiles", "max_tiles")}
            geometry = VilaPreprocessor(pictures("dynamic", tile, **limits)).geometry(size)
            assert (geometry.grid or (1, 1)) == (choice["grid_h"], choice["grid_w"]), choice
            assert geometry.num_tiles == len(geometry.segments(-1)) == choice["num_tiles_with_thumbnail"], choice
            assert geometry.num_tiles <= 1 + limits["max_tiles"]
        else:
            config = pictures(
                "dynamic_s2", tile, scales=tuple(choice["s2_scales"]), resize_to=-1 + len(choice["s2_scales"]),
                max_tiles=choice["max_tiles"],
            )  # fmt: skip
            preprocess = VilaPreprocessor(config)
            geometry = preprocess.geometry(size)
            assert geometry.grid == tuple(choice["block_size_rows_cols"]), choice
            assert sum(r * c for r, c in preprocess._grids(size, alone=True)) == choice["num_tiles_total"]
    assert len({(choice["width"], choice["height"]) for choice in choices}) == 40


def test_grid_of_equally_near_shape_needs_half_of_its_pixels():
    """The rule in words: 1 x 1, 2 x 2 and 3 x 3 tiles are equally near to a square."""
    for edge, rows in ((99, 1), (141, 1), (142, 2), (212, 2), (213, 3)):  # 100 * sqrt(2), 100 * sqrt(4.5)
        assert closest_grid((edge, edge), 100, 1, 12) == (rows, rows)


def test_tiles_and_mosaic_equal_the_reference(golden):
    with np.load(golden / "vila" / "modules" / "s2_chessboard.npz") as recorded:
        for name in recorded:
            if not name.startswith("split_in"):
                continue
            shape = name.removeprefix("split_in_")
            np.testing.assert_array_equal(split_tiles(recorded[name][0], 4), recorded[f"split_out_{shape}"])
            rows, columns = map(int, shape.split("x"))
            blocks = TileGeometry(4, (1, 1), (rows, columns), "blocks")
            features = recorded[f"merge_in_{shape}"].reshape(-1, 3)
            merged = recorded[f"merge_out_{shape}"][0].transpose(1, 2, 0)
            np.testing.assert_array_equal(features[blocks.mosaic()], merged)
            np.testing.assert_array_equal(features[blocks.order()], merged.reshape(-1, 3))


@pytest.mark.parametrize("side", range(3, 10))
def test_order_of_merged_tokens_of_each_era(golden, side):
    """Both projectors merge the same windows; VILA1.5's come column by column."""
    with np.load(golden / "vila" / "modules" / "projector_token_reorder.npz") as recorded:
        row_major = recorded[f"out_mlp_downsample_main_{side}"][0]
        column_major = recorded[f"out_mlp_downsample_vila15_{side}"][0]
        thirds = recorded[f"out_3x3_fix_{side}"][0]
    for columns_first, window, expected in ((False, 2, row_major), (True, 2, column_major), (False, 3, thirds)):
        config = pictures("resize", 14 * side, window=window, column_major=columns_first)
        geometry = VilaPreprocessor(config).geometry((30, 40))
        (segment,) = geometry.segments(-1)
        assert segment.dtype == geometry.order().dtype == np.int32
        merged = thirds if window == 3 else row_major
        np.testing.assert_array_equal(merged[segment], expected)
        np.testing.assert_array_equal(merged[geometry.order()], expected)
        np.testing.assert_array_equal(geometry.overview(), np.arange(len(expected)))  # flat indices stay row-major


@pytest.mark.parametrize("column_major", [False, True])
def test_tiles_of_a_dynamic_picture_come_before_its_overview(column_major):
    """Token by token: 2 x 3 tiles of 2 x 2 tokens, tile 0 is the overview."""
    geometry = TileGeometry(2, (40, 60), (2, 3), "tiles", column_major)
    inside = [0, 2, 1, 3] if column_major else [0, 1, 2, 3]
    expected = [[tile * 4 + i for i in inside] for tile in (1, 2, 3, 4, 5, 6, 0)]
    assert [segment.tolist() for segment in geometry.segments(99)] == expected
    assert geometry.order().tolist() == [token for segment in expected for token in segment]
    assert geometry.real().shape == (7, 4)
    assert geometry.real().all()
    assert geometry.picture_box() == (0, 4, 0, 6), "the picture fills the mosaic whatever its shape"
    assert geometry.mosaic().tolist()[1] == [6, 7, 10, 11, 14, 15]
    assert geometry.overview().tolist() == [0, 1, 2, 3]
    assert geometry.regions().tolist() == [0, 2, 3, 5]  # an even number of patches over three columns: centres decide


def test_blocks_have_no_overview():
    geometry = TileGeometry(2, (900, 100), (1, 2), "blocks")
    assert (geometry.num_tiles, geometry.has_overview, geometry.overview().size) == (2, False, 0)
    assert [segment.tolist() for segment in geometry.segments(99)] == [[0, 1, 4, 5, 2, 3, 6, 7]]
    assert geometry.order().tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert geometry.real().all()
    assert geometry.real().shape == (2, 4)
    assert geometry.regions().shape == (4,)


@pytest.mark.parametrize("arrangement", ["anyres", "tiles", "blocks"])
def test_single_tile_is_the_same_in_every_arrangement(arrangement):
    geometry = TileGeometry(2, (30, 40), None, arrangement)
    assert geometry.num_tiles == 1
    assert [segment.tolist() for segment in geometry.segments(99)] == [[0, 1, 2, 3]]
    assert geometry.overview().tolist() == geometry.order().tolist() == [0, 1, 2, 3]
    assert geometry.mosaic().size == 0
