"""Work and floors of published shapes against numbers from an independent script, typed in.

All are of bfloat16, 64 tokens of text, and all visual tokens of a square picture; batch 8 where a batch is told; a
machine of 790 TFLOP/s and 4.3 TB/s. Those of the decode step are at 64 tokens behind the prompt.
"""

import dataclasses

import pytest

from vila_jax.bench import floors, flops
from vila_jax.bench.machine import Rates
from vila_jax.bench.presets import preset
from vila_jax.budgets import Step
from vila_jax.quantize import Quantization

RATES = Rates(790e12, 4.3e12, "by hand")


@dataclasses.dataclass(frozen=True)
class Expected:
    tiles: int
    tower_flops: float
    tower_bytes: float
    projector_flops: float
    projector_bytes: float
    decoder_flops: float
    step_flops: float  # of one row
    step_bytes: float
    prefill_ms: float
    prefill_20_ms: float  # a fifth of the visual tokens
    step_ms: float


PUBLISHED = {
    "llava-1.5-7b": Expected(
        *(1, 3.6603e11, 5.8002e08, 2.4159e10, 4.1959e07, 8.3971e12, 1.3583e10, 1.6171e10, 89.043, 27.380, 3.761)
    ),
    "llava-1.5-13b": Expected(
        *(1, 3.6603e11, 5.8002e08, 3.6239e10, 6.2935e07, 1.6409e13, 2.6280e10, 3.0324e10, 170.311, 49.987, 7.052)
    ),
    "vila-7b": Expected(
        *(1, 3.6603e11, 5.8002e08, 2.4159e10, 4.1959e07, 8.3971e12, 1.3583e10, 1.6171e10, 89.043, 27.380, 3.761)
    ),
    "llava-next-7b": Expected(
        *(5, 3.6603e11, 5.8002e08, 1.2080e11, 4.1959e07, 4.0404e13, 1.4791e10, 2.5835e10, 428.967, 103.870, 6.008)
    ),
    "vila1.5-3b": Expected(
        *(1, 6.4180e11, 7.9305e08, 7.1932e09, 3.6729e07, 1.3308e12, 5.3451e09, 6.0909e09, 20.085, 11.863, 1.416)
    ),
    "nvila-8b": Expected(
        *(1, 9.3771e11, 7.9305e08, 1.5032e10, 5.8753e07, 4.1979e12, 1.4295e10, 1.4317e10, 52.401, 25.005, 3.330)
    ),
    "nvila-lite-8b": Expected(
        *(1, 9.3771e11, 7.9305e08, 1.4777e10, 1.2220e08, 2.4224e12, 1.4241e10, 1.4255e10, 34.418, 21.425, 3.315)
    ),
}


def near(value):
    return pytest.approx(value, rel=0.01)


def sizes(name, *, batch=1, keep=1.0):
    config, tiles = preset(name).vlm, PUBLISHED[name].tiles
    visual = round(keep * tiles * config.tokens_per_tile)
    return config, floors.Sizes(batch=batch, tiles=tiles, text=64, visual=visual, itemsize=2)


@pytest.mark.parametrize("name", PUBLISHED)
def test_flops_and_bytes_of_every_stage(name):
    (config, one), expected = sizes(name), PUBLISHED[name]
    tower, projector, body, head = floors.prefill_stages(config, one)
    assert tower.flops / one.tiles == near(expected.tower_flops) and tower.bytes == near(expected.tower_bytes)
    assert projector.flops == near(expected.projector_flops) and projector.bytes == near(expected.projector_bytes)
    assert body.flops + head.flops == near(expected.decoder_flops)
    step = floors.decode_work(config, one, 64)
    assert step.flops == near(expected.step_flops)
    assert floors.decode_work(config, sizes(name, batch=8)[1], 64).bytes == near(expected.step_bytes)


@pytest.mark.parametrize("name", PUBLISHED)
def test_floors_of_a_batch_of_eight(name):
    expected = PUBLISHED[name]
    assert 1000 * floors.prefill_floor(*sizes(name, batch=8), RATES) == near(expected.prefill_ms)
    assert 1000 * floors.prefill_floor(*sizes(name, batch=8, keep=0.2), RATES) == near(expected.prefill_20_ms)
    config, eight = sizes(name, batch=8)
    assert 1000 * floors.decode_work(config, eight, 64).seconds(RATES) == near(expected.step_ms)


# Tokens per second of a machine of 4.3 TB/s, from an independent script that halves or quarters all weights of the
# decoder and its head: at batch 1 and 32, in the middle of 128 generated tokens. Keys and values stay as they are.
FEWER_BITS = {
    "llava-1.5-7b": {"int8": (616, 7464), "int4": (1171, 9094)},
    "vila1.5-3b": {"int8": (1577, 22_800), "int4": (3036, 29_200)},
    "nvila-8b": {"int8": (606, 17_700), "int4": (1209, 32_400)},
}


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("name", FEWER_BITS)
def test_decode_of_fewer_bits(name, kind):
    """Scales add up to 6 % to four bits (one float32 for 128 of them), and next to nothing to eight."""
    quantization = Quantization.parse(f"{kind},parts=decoder+head")
    for batch, expected in zip((1, 32), FEWER_BITS[name][kind], strict=True):
        config, asked = sizes(name, batch=batch)
        work = floors.decode_work(config, dataclasses.replace(asked, quantization=quantization), 64)
        found = batch / work.seconds(RATES)
        assert 0.92 * expected < found < 1.02 * expected


def test_a_cache_of_eight_bits_is_read_at_half_the_bytes():
    config, asked = sizes("llava-1.5-7b", batch=32)
    eight = dataclasses.replace(asked, quantization=Quantization.parse("kv=int8"))
    saved = floors.decode_work(config, asked, 64).bytes - floors.decode_work(config, eight, 64).bytes
    # 32 rows of 705 entries, 32 layers, keys and values of 32 heads: of 256 bytes 132 are left, with the scale
    assert saved == 32 * 705 * 32 * 2 * 32 * (256 - 132)


def test_small_prompts_are_bound_by_the_weights_that_are_read():
    config, one = sizes("llava-1.5-7b", keep=0.05)
    body = floors.body_work(config, one)
    assert body.seconds(RATES) == body.bytes / RATES.bandwidth > body.flops / RATES.flops


def test_what_a_budget_inside_the_decoder_drops_is_neither_computed_nor_read():
    config, one = sizes("llava-1.5-7b")
    fewer = dataclasses.replace(one, step=Step.parse("fastv:0.5,layer=2"))
    assert floors.body_work(config, fewer).flops + 2 * 4096 * 32_064 == flops.decoder_flops(
        config.decoder, 64, 576, fewer.step
    )
    saved = floors.decode_work(config, one, 0).bytes - floors.decode_work(config, fewer, 0).bytes
    assert saved == 30 * 288 * 2 * 4096 * 2  # thirty layers, half the visual tokens, keys and values of two bytes
