"""Several scales: the gather table and the bicubic filter, against PyTorch and the reference."""

import json

import numpy as np
import pytest
import torch

from vila_jax.vision.scales import repeated_map, resize_bicubic, scale_map, widest_window
from vila_jax.vision.tiling import candidate_grids, split_tiles
from vila_jax.vision.vila import VilaPreprocessor
from vila_jax.vision.vila_config import VilaPictures


def pictures(mode: str, scales: tuple[int, ...], resize_to: int, side: int = 4, **others) -> VilaPictures:
    half = (0.5, 0.5, 0.5)
    return VilaPictures(
        mode=mode, tile_size=scales[0], mean=half, std=half, resample=3, side=side, window=1, column_major=False,
        scales=scales, resize_to=resize_to, **others,
    )  # fmt: skip


def apply(index: np.ndarray, features: np.ndarray) -> np.ndarray:
    """What the device does, `[P, N, D] -> [B, N, S * D]`, in float64."""
    vectors = features.reshape(-1, features.shape[-1]).astype(np.float64)
    used = index >= 0
    total = (vectors[np.maximum(index, 0)] * used[..., None]).sum(axis=3)
    mean = total / used.sum(axis=3)[..., None]
    return mean.reshape(*index.shape[:2], -1)


def as_map(blocks: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """`[B, N, E] -> [E, H, W]`."""
    side = int(blocks.shape[1] ** 0.5)
    parts = blocks.reshape(*grid, side, side, -1)
    return parts.transpose(4, 0, 2, 1, 3).reshape(-1, grid[0] * side, grid[1] * side)


# The gather table -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(6))
def test_blocks_of_dynamic_s2_equal_the_reference(golden, case):
    folder = golden / "vila" / "modules"
    facts = json.loads((folder / "dynamic_s2_merge.json").read_text())[case]
    scales = tuple(facts["scales"])
    resize_to = facts["resize_output_to_scale_idx"] % len(scales)
    with np.load(folder / "dynamic_s2_merge.npz") as recorded:
        tiles = recorded[f"in_{case}"]
        expected = [recorded[f"out_{case}_{i}"][0] for i in range(len(facts["block_sizes"]))]
    side = int(tiles.shape[1] ** 0.5)
    config = pictures("dynamic_s2", scales, resize_to, side=side)
    for sizes, out_grid, theirs in zip(facts["block_sizes"], facts["new_block_sizes"], expected, strict=True):
        if sizes is None:
            used, scale = 1, repeated_map(side, len(scales), config.scale_window)
        else:
            grids = (*config.squares[:-1], tuple(sizes))
            used = sum(rows * columns for rows, columns in grids)
            scale = scale_map(grids, side, grids[resize_to], side, config.scale_window)
        own, tiles = tiles[:used], tiles[used:]
        assert scale.index.shape == (np.prod(out_grid), side**2, len(scales), config.scale_window)
        assert scale.index.max() < own.shape[0] * own.shape[1]
        np.testing.assert_allclose(as_map(apply(scale.index, own), tuple(out_grid)), theirs, atol=1e-6)
    assert len(tiles) == 0


def test_area_resizing_equals_the_reference(golden):
    with np.load(golden / "vila" / "modules" / "s2_wrapper.npz") as recorded:
        names = [name.removeprefix("area_in_") for name in recorded if name.startswith("area_in")]
        assert names
        for name in names:
            old, new = map(int, name.split("_"))
            features = recorded[f"area_in_{name}"][0].transpose(1, 2, 0).reshape(1, old * old, -1)
            index = scale_map([(1, 1)], old, (1, 1), new, widest_window(old, new) ** 2).index
            np.testing.assert_allclose(
                as_map(apply(index, features), (1, 1)), recorded[f"area_out_{name}"][0], atol=1e-6
            )


@pytest.mark.parametrize(
    "name, scales, resize_to",
    [("8_16_24_max8_idx0", (8, 16, 24), 0), ("8_16_max8_idx0", (8, 16), 0), ("8_16_24_max8_idx2", (8, 16, 24), 2)],
)
def test_s2_equals_the_reference(golden, name, scales, resize_to):
    """From the largest picture to the features of the map; the tower is a convolution of 4 x 4 pixels."""
    with np.load(golden / "vila" / "modules" / "s2_wrapper.npz") as recorded:
        images, weight, expected = recorded["input"], recorded["conv_weight"], recorded[f"out_sizes{name}"]
    config = pictures("s2", scales, resize_to, side=2)
    grids = config.squares
    index = scale_map(grids, config.side, (1, 1), config.block_side, config.scale_window).index
    for image, theirs in zip(images, expected, strict=True):
        tiles = np.concatenate([split_tiles(resize_bicubic(image, (size, size)), 8) for size in scales])
        maps = torch.nn.functional.conv2d(torch.from_numpy(tiles), torch.from_numpy(weight), stride=4)
        features = maps.flatten(2).swapaxes(1, 2).numpy()
        np.testing.assert_allclose(apply(index, features)[0], theirs, atol=1e-5)


def test_windows_equal_adaptive_pooling_of_any_sizes():
    rng = np.random.default_rng(0)
    for side, block_side, grid, blocks in [(3, 3, (2, 3), (3, 2)), (5, 5, (2, 2), (1, 5)), (4, 7, (1, 1), (1, 1))]:
        features = rng.normal(size=(grid[0] * grid[1], side**2, 2))
        whole = torch.from_numpy(as_map(features, grid))
        size = blocks[0] * block_side, blocks[1] * block_side
        expected = torch.nn.functional.adaptive_avg_pool2d(whole, size).numpy()
        width = np.prod([widest_window(n * side, new) for n, new in zip(grid, size, strict=True)])
        index = scale_map([grid], side, blocks, block_side, int(width) + 3).index
        assert (index >= 0).sum(axis=3).max() == width, "no wider than it must be"
        np.testing.assert_allclose(as_map(apply(index, features), blocks), expected, atol=1e-12)


@pytest.mark.parametrize("side", [1, 3, 4])
@pytest.mark.parametrize("resize_to", [0, 1, 2])
def test_width_is_enough_for_every_grid_and_no_more(side, resize_to):
    config = pictures("dynamic_s2", (56, 112, 168), resize_to, side=side, max_tiles=12)
    widths = []
    for grid in candidate_grids(9, 12):
        grids = (*config.squares[:-1], grid)
        index = scale_map(grids, side, grids[resize_to], side, 144).index
        widths.append((index >= 0).sum(axis=3).max())
    assert config.scale_window == max(widths)


# The filter -------------------------------------------------------------------------------------------------------


def test_bicubic_equals_the_reference(golden):
    with np.load(golden / "vila" / "modules" / "s2_wrapper.npz") as recorded:
        for size in (8, 16, 12):
            for image, expected in zip(recorded["input"], recorded[f"bicubic_{size}"], strict=True):
                np.testing.assert_allclose(resize_bicubic(image, (size, size)), expected, atol=1e-6)


@pytest.mark.parametrize(
    "old, new",
    [((24, 24), (24, 24)), ((28, 56), (14, 17)), ((9, 5), (31, 23)), ((768, 96), (384, 32)), ((1, 2), (3, 5))],
)
def test_bicubic_equals_pytorch(old, new):
    image = np.random.default_rng(1).uniform(-1, 1, (3, *old)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(torch.from_numpy(image)[None], new, mode="bicubic", align_corners=False)
    np.testing.assert_allclose(resize_bicubic(image, new), theirs[0].numpy(), rtol=0, atol=2e-6)


def test_picture_of_s2_equals_pillow_and_pytorch(photos):
    """The largest scale is Pillow's, the smaller ones are made of it by PyTorch."""
    config = pictures("s2", (28, 84), 0, side=2)
    photo = photos["china"].resize((90, 61))
    result = VilaPreprocessor(config)(photo)
    largest = np.asarray(photo.resize((84, 84), 3), np.float32).transpose(2, 0, 1) / 127.5 - 1
    smaller = torch.nn.functional.interpolate(torch.from_numpy(largest)[None], (28, 28), mode="bicubic")
    np.testing.assert_allclose(result.pixels[0], smaller[0].numpy(), atol=2e-6)
    np.testing.assert_allclose(result.pixels[1 + 5], largest[:, 28:56, 56:84], atol=1e-6)
    assert result.geometry.num_tiles == 1
    assert result.scales.index.shape == (1, 4, 2, 9)
    assert result.scales.index[0, 3, 0].tolist() == [3] + [-1] * 8
