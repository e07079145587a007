"""Published VILA models at full size, without their weights: parameters, tokens of a picture, era, context."""

import pytest

from tests.published import VILA
from vila_jax.bench import memory
from vila_jax.hf.config import parse_config

# Published sizes of the parts alone.
CLIP = 303_507_456  # ViT-L/14 at 336 px
SIGLIP_WITH_HEAD = 428_225_600  # so400m/14 at 384 px
INTERN = 5_536_496_000  # InternViT-6B-448px-V1-2: 45 blocks
LLAMA_2_7B, LLAMA_2_13B = 6_738_415_616, 13_015_864_320  # Vicuna has the shapes of Llama 2
SHEARED_LLAMA, LLAMA_3_8B, YI_34B = 2_701_560_320, 8_030_261_248, 34_388_917_248
QWEN_1_5B, QWEN_7B, QWEN_14B = 1_543_714_304, 7_615_616_512, 14_770_033_664

# What is published and not built, because it lies behind the feature layer: the last block, the norm, SigLIP's head.
CLIP_BLOCK = 4 * (1024**2 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 4 * 1024
SIGLIP_BLOCK = 4 * (1152**2 + 1152) + 2 * 1152 * 4304 + 4304 + 1152 + 4 * 1152
SIGLIP_HEAD = 1152 + 4 * (1152**2 + 1152) + 2 * 1152 + 2 * 1152 * 4304 + 4304 + 1152
CLIP_BUILT = CLIP - CLIP_BLOCK - 2 * 1024
SIGLIP_BUILT = SIGLIP_WITH_HEAD - SIGLIP_HEAD - SIGLIP_BLOCK - 2 * 1152
SIGLIP_448_BUILT = SIGLIP_BUILT + (32**2 - 27**2) * 1152


def linear(inside: int, outside: int) -> int:
    return inside * outside + outside


def downsample(features: int, width: int) -> int:
    """Parameters of `mlp_downsample`."""
    return 2 * 4 * features + linear(4 * features, width) + linear(width, width)


def three_by_three(features: int, width: int) -> int:
    """Parameters of `mlp_downsample_3x3_fix`."""
    hidden = 3 * features
    return 2 * 9 * features + linear(9 * features, hidden) + 2 * hidden + linear(hidden, width) + linear(width, width)


EXPECTED = {  # tower, projector, decoder, tokens of a tile, era
    "VILA-7b": (CLIP_BUILT, linear(1024, 4096) + linear(4096, 4096), LLAMA_2_7B, 576, "v1"),
    "VILA-13b": (CLIP_BUILT, linear(1024, 5120) + linear(5120, 5120), LLAMA_2_13B, 576, "v1"),
    "VILA1.5-3b": (SIGLIP_BUILT, 18_364_416, SHEARED_LLAMA, 196, "vila1.5"),
    "VILA1.5-3b-s2": (SIGLIP_BUILT, downsample(2304, 2560), SHEARED_LLAMA, 196, "vila1.5"),
    "Llama-3-VILA1.5-8b": (SIGLIP_BUILT, downsample(1152, 4096), LLAMA_3_8B, 196, "vila1.5"),
    "VILA1.5-13b": (SIGLIP_BUILT, downsample(1152, 5120), LLAMA_2_13B, 196, "vila1.5"),
    "VILA1.5-40b": (INTERN, downsample(3200, 7168), YI_34B, 256, "vila1.5"),
    "NVILA-Lite-2B": (SIGLIP_448_BUILT, three_by_three(1152, 1536), QWEN_1_5B, 121, "nvila"),
    "NVILA-Lite-8B": (SIGLIP_448_BUILT, three_by_three(1152, 3584), QWEN_7B, 121, "nvila"),
    "NVILA-Lite-15B": (SIGLIP_448_BUILT, three_by_three(1152, 5120), QWEN_14B, 121, "nvila"),
    "NVILA-8B": (SIGLIP_448_BUILT, downsample(3456, 3584), QWEN_7B, 256, "nvila"),
    "NVILA-15B": (SIGLIP_448_BUILT, downsample(3456, 5120), QWEN_14B, 256, "nvila"),
}


@pytest.mark.parametrize("name", VILA)
def test_parameters(name):
    tower, projector, decoder, _, _ = EXPECTED[name]
    counts = memory.parameter_counts(parse_config(VILA[name]).vlm)
    assert counts["vision_tower"] == tower
    assert counts["projector"] == projector
    assert sum(n for part, n in counts.items() if part.startswith("decoder.")) == decoder


def test_sizes_that_are_known_from_elsewhere():
    """Sizes of published files, of 2 bytes a parameter; millions and billions of a public table."""
    siglip_448 = SIGLIP_448_BUILT + SIGLIP_BLOCK + 2 * 1152
    megabytes = {
        36.7: downsample(1152, 2560),
        125: downsample(3456, 3584),
        122: three_by_three(1152, 3584),
        160: three_by_three(1152, 5120),
        827: siglip_448,
        857: SIGLIP_WITH_HEAD,
    }
    for size, count in megabytes.items():
        assert 2 * count / 1e6 == pytest.approx(size, rel=5e-3)
    assert CLIP + EXPECTED["VILA-7b"][1] + LLAMA_2_7B == 7_062_902_784
    whole_3b = SIGLIP_WITH_HEAD - SIGLIP_HEAD + 18_364_416 + SHEARED_LLAMA
    assert whole_3b / 1e9 == pytest.approx(3.133, rel=2e-4)
    assert (siglip_448 + downsample(1152, 3584) + QWEN_7B) / 1e9 == pytest.approx(8.058, rel=2e-4)


@pytest.mark.parametrize("name", VILA)
def test_tokens_of_a_tile(name):
    config = parse_config(VILA[name])
    assert config.vlm.tokens_per_tile == EXPECTED[name][3]
    assert (-(-config.pictures.side // config.pictures.window)) ** 2 == EXPECTED[name][3]


@pytest.mark.parametrize("name", VILA)
def test_era(name):
    config = parse_config(VILA[name])
    era = EXPECTED[name][4]
    assert config.era == era
    assert config.era_reason
    assert config.pictures.column_major == (era == "vila1.5")
    assert config.context_length == 4096
    assert config.vlm.decoder.rope.scaling == "default"


TILES = {  # of the geometry, and of the tower
    "VILA-7b": (1, 1),
    "VILA1.5-40b": (1, 1),
    "VILA1.5-3b-s2": (1, 1 + 4),
    "NVILA-Lite-8B": (13, 13),
    "NVILA-8B": (12, 1 + 4 + 12),
}


@pytest.mark.parametrize("name", TILES)
def test_most_tiles(name):
    config = parse_config(VILA[name])
    assert (config.max_tiles, config.max_tower_tiles) == TILES[name]


def test_names():
    assert parse_config(VILA["VILA-7b"]).architecture == "VILA (CLIP + Llama)"
    assert parse_config(VILA["VILA1.5-40b"]).architecture == "VILA1.5 (InternViT + Llama)"
    assert parse_config(VILA["NVILA-8B"]).architecture == "NVILA (SigLIP + Qwen2)"


def test_tied_embeddings_of_the_smallest():
    assert parse_config(VILA["NVILA-Lite-2B"]).vlm.decoder.tie_embeddings
    assert not parse_config(VILA["NVILA-Lite-8B"]).vlm.decoder.tie_embeddings
