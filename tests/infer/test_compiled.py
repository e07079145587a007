"""What XLA makes of the programs of a request: no copy of a cache or a weight, and no work for tokens that are gone.

A decode step reads all weights and the whole cache once; writing either anew would take longer than the step. The sizes
are such that the smallest weight, and the keys of a layer, are larger than all else that decoding computes.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

from tests.infer.hlo import Module
from tests.infer.unrun import programs_of
from vila_jax.bench.presets import preset_json
from vila_jax.bench.subject import Case

TEXT, VISUAL = 40, 100  # 10 x 10 patches
WIDTH, FFN, VOCABULARY, LAYERS, HEADS, KV_HEADS = 256, 640, 1000, 3, 4, 2
SMALLEST_WEIGHT = WIDTH * KV_HEADS * (WIDTH // HEADS)
LONG, SHORT = 160, 96  # prompts with all visual tokens and with a quarter of them, padded to their buckets
QUARTER, INSIDE = "hired:0.25", "fastv:0.25,layer=1"


@functools.cache
def compiled(name: str, budget: str | None, batch: int = 2, *, donate: bool = True) -> Module:
    data = preset_json("tiny")
    data["vision_config"]["image_size"] = 140
    data["text_config"] |= dict(
        hidden_size=WIDTH,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        vocab_size=VOCABULARY,
    )
    data["image_token_index"] = VOCABULARY - 1
    programs, layout = programs_of(data, Case(batch, budget, TEXT, 9, 140), donate=donate)
    assert layout.prompts.token_ids.shape[1] == (SHORT if budget == QUARTER else LONG)
    return Module(programs[name].compile().as_text())


def written(module: Module) -> list[str]:
    """Instructions, loops included, that write as much as the smallest weight."""
    return [one.text for one in module.run() if one.size >= SMALLEST_WEIGHT and module.writes(one)]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("budget", [None, INSIDE])
def test_decoding_copies_neither_cache_nor_weights(batch, budget):
    module = compiled("decode", budget, batch)
    assert len(module.loops()) == 1, "all steps of a chunk are turns of one loop"
    assert written(module) == []


def test_without_donation_the_cache_is_copied():
    """That is what donation is for, and such copies are seen."""
    assert len(written(compiled("decode", None, donate=False))) == 2 * LAYERS


def test_a_weight_written_inside_a_loop_is_seen():
    def roll(weight, x):
        return jax.lax.fori_loop(0, 3, lambda i, x: x @ jnp.roll(weight, i, axis=0), x)

    shapes = jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32), jax.ShapeDtypeStruct((1, WIDTH), jnp.float32)
    assert written(Module(jax.jit(roll).lower(*shapes).compile().as_text()))


@pytest.mark.parametrize(("budget", "lengths"), [(None, {LONG}), (QUARTER, {SHORT}), (INSIDE, {LONG, SHORT})])
def test_products_are_those_of_the_tokens_that_are_left(budget, lengths):
    """The MLP of every layer, whose width nothing else has, multiplies as many rows as there are tokens.

    The last layer does so for the last token of each row alone.
    """
    module = compiled("prefill", budget)
    sizes = {one.size // FFN for one in module.everything() if one.name == "dot" and FFN in one.shapes[0]}
    assert sizes == {2 * length for length in lengths} | {2}


def test_only_last_positions_get_logits():
    module = compiled("prefill", None)
    sizes = {one.size for one in module.everything() if one.name != "parameter" and VOCABULARY in one.dimensions}
    assert max(sizes) == 2 * VOCABULARY
