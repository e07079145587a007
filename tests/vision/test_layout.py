"""Number and order of the visual tokens, against transformers."""

import types

import pytest
import torch
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

from vila_jax.vision.preprocess import PreprocessConfig, Preprocessor

PATCH = 14
PINPOINTS = {
    "published": (56, [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]),
    "published-336": (336, [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]),
    "many": (84, [[84 * r, 84 * c] for r in range(1, 7) for c in range(1, 7) if r * c <= 6]),
    "wide": (336, [[336, 672]]),
    "tall": (336, [[672, 336]]),
    "one": (70, [[70, 70]]),
    "patch-does-not-divide": (60, [[60, 120], [120, 120]]),
}
SIZES = [
    (1, 1), (1, 50), (50, 1), (1, 65535), (65535, 1), (2, 3), (300, 700), (700, 300), (365, 500), (427, 640),
    (512, 512), (1000, 999), (336, 336), (337, 336), (100, 299), (1100, 336), (111, 167), (4032, 3024),
    (55, 176), (88, 55), (99, 88), (47, 376),  # "wide", "tall": whole patches but for the last bit of a float
]  # fmt: skip


def preprocessor(tile: int, pinpoints: list[list[int]]) -> Preprocessor:
    config = {"size": tile, "crop_size": tile, "image_grid_pinpoints": pinpoints}
    return Preprocessor(PreprocessConfig.from_hf(config, model_type="llava_next"), PATCH)


def packed_by_transformers(tile: int, pinpoints: list[list[int]], size: tuple[int, int], newline: int) -> torch.Tensor:
    """Flat patch index of every token: the features that are packed are their own indices."""
    vision = types.SimpleNamespace(image_size=tile, patch_size=PATCH)
    model = types.SimpleNamespace(config=types.SimpleNamespace(vision_config=vision, image_grid_pinpoints=pinpoints))
    tiles = preprocessor(tile, pinpoints).geometry(size).num_tiles
    features = torch.arange(tiles * (tile // PATCH) ** 2).reshape(tiles, -1, 1)
    packed, _ = LlavaNextModel.pack_image_features(
        model, [features], torch.tensor([size]), "default", image_newline=torch.tensor([newline])
    )
    return packed[0][:, 0]


@pytest.mark.parametrize("name", PINPOINTS)
def test_token_order_equals_transformers(name):
    tile, pinpoints = PINPOINTS[name]
    for size in SIZES:
        geometry = preprocessor(tile, pinpoints).geometry(size)
        newline = geometry.num_tiles * geometry.patches_per_tile
        expected = packed_by_transformers(tile, pinpoints, size, newline).tolist()
        assert geometry.order_with_newlines(newline).tolist() == expected, size
        assert geometry.order().tolist() == [index for index in expected if index != newline], size


@pytest.mark.parametrize("name", PINPOINTS)
def test_token_count_equals_transformers(name):
    tile, pinpoints = PINPOINTS[name]
    processor = LlavaNextProcessor.__new__(LlavaNextProcessor)
    processor.image_processor = types.SimpleNamespace(image_grid_pinpoints=pinpoints)
    processor.patch_size, processor.num_additional_image_tokens = PATCH, 0
    for size in SIZES:
        geometry = preprocessor(tile, pinpoints).geometry(size)
        assert len(geometry.order_with_newlines(-1)) == processor._get_number_of_features(*size, tile, tile), size
