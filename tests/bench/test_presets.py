"""Shapes of the presets against counts made by hand from the published shapes (an independent script: the expected
numbers are typed in, not computed by this package)."""

import pytest

from vila_jax.bench.flops import decoder_flops, projector_flops, tower_flops
from vila_jax.bench.memory import kv_bytes_per_token, parameter_counts
from vila_jax.bench.presets import PRESETS, preset
from vila_jax.errors import ConfigError

# name: TFLOP of the tower per tile, parameters of projector (M) and decoder (B), KV KiB per token, tokens per tile
PUBLISHED = {
    "llava-1.5-7b": (0.366, 20.98, 6.738, 512, 576),
    "vila-7b": (0.366, 20.98, 6.738, 512, 576),
    "llava-next-7b": (0.366, 20.98, 6.738, 512, 576),
    "vila1.5-3b": (0.642, 18.36, 2.702, 320, 196),
    "nvila-8b": (0.938, 29.38, 7.616, 56, 256),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_those_of_the_published_shapes(name):
    config = preset(name).vlm
    tower, projector, decoder, cache, tokens = PUBLISHED[name]
    counts = parameter_counts(config)
    assert tower_flops(config) / 1e12 == pytest.approx(tower, rel=0.01)
    assert counts["projector"] / 1e6 == pytest.approx(projector, rel=0.01)
    assert sum(n for part, n in counts.items() if part.startswith("decoder")) / 1e9 == pytest.approx(decoder, rel=0.01)
    assert kv_bytes_per_token(config.decoder, 2) == cache * 1024
    assert config.tokens_per_tile == tokens


def test_prefill_of_640_tokens_takes_8_79_teraflop():
    config = preset("llava-1.5-7b").vlm
    total = tower_flops(config) + projector_flops(config, 576) + decoder_flops(config.decoder, 64, 576)
    assert total / 1e12 == pytest.approx(8.79, rel=0.01)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_built(name):
    assert preset(name).vlm.decoder.num_layers > 1


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match=r"llava-1\.5-7b"):
        preset("llava-1.5-7")
