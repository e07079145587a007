"""FLOPs of published models against arithmetic written out by hand, and of a small one against XLA's own count."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tests.published import LLAVA_15_7B, LLAVA_NEXT_MISTRAL_7B
from vila_jax.bench import flops
from vila_jax.budgets import Step, tokens_of_tile
from vila_jax.budgets.tower import make_reduction
from vila_jax.hf.config import parse_config
from vila_jax.hf.load import abstract_model

LLAVA = parse_config(LLAVA_15_7B).vlm
MISTRAL = parse_config(LLAVA_NEXT_MISTRAL_7B).vlm


def test_tower_runs_23_of_24_blocks():
    assert flops.tower_flops(LLAVA) == 23 * (2 * 577 * 12_582_912 + 4 * 577**2 * 1024) + 2 * 576 * 588 * 1024


def test_projector():
    assert flops.projector_flops(LLAVA, 576) == 2 * 576 * (1024 * 4096 + 4096 * 4096)


def test_prompt_of_640_tokens_through_vicuna():
    # 32 layers of 4 x 4096^2 + 3 x 4096 x 11008 weights; the head on one position
    body = 2 * 6_476_005_376 * 640 + 32 * 2 * 4096 * 640 * 641
    assert flops.decoder_flops(LLAVA.decoder, 640) == body + 2 * 4096 * 32_064


def test_grouped_heads_have_narrow_keys_and_values():
    assert flops.layer_weights(MISTRAL.decoder) == 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14_336)


def test_whole_prefill_of_llava_15_is_close_to_nine_teraflop():
    assert flops.prefill_flops(LLAVA, 1, 576, 64) / 1e12 == pytest.approx(8.79, abs=0.005)


@pytest.mark.parametrize(("tokens", "window"), [(1, None), (7, None), (7, 1), (7, 3), (7, 7), (7, 20)])
def test_visible_pairs_are_those_of_the_mask(tokens, window):
    limit = tokens if window is None else window
    pairs = sum(query - limit < key <= query for query in range(tokens) for key in range(tokens))
    assert flops.visible_pairs(tokens, window) == pairs


def test_tower_agrees_with_what_xla_counts():
    config = parse_config(
        {**LLAVA_15_7B, "vision_config": {**LLAVA_15_7B["vision_config"], "num_hidden_layers": 2}}
    ).vlm
    graphdef, state = abstract_model(config, "float32")
    pixels = jax.ShapeDtypeStruct((1, 3, 336, 336), jnp.float32)
    lowered = jax.jit(lambda state, pixels: nnx.merge(graphdef, state).encode(pixels)[0]).lower(state, pixels)
    counted = lowered.cost_analysis()["flops"]  # counts softmax and activations, too
    assert flops.tower_flops(config) == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize(
    ("spec", "computed"),
    [
        ("tower_norm:0.25", (468, 360, 252, 144)),
        ("tower_norm:64,first_layer=1,last_layer=1", (576, 64, 64, 64)),
        ("tome:0.25", (468, 360, 252, 144)),
        ("tome:100,r=200", (376, 188, 100, 100)),
        ("tower_norm:0.25,form=threshold", (576, 576, 576, 576)),
    ],
)
def test_reduced_tower_agrees_with_what_xla_counts(spec, computed):
    """The sequence is really shorter; where it is only masked, nothing is saved."""
    vision = {**LLAVA_15_7B["vision_config"], "num_hidden_layers": 5}
    config = parse_config({**LLAVA_15_7B, "vision_config": vision}).vlm
    step = Step.parse(spec)
    reduction = make_reduction(step.tower_method, tokens_of_tile(step, 576), config)
    graphdef, state = abstract_model(config, "float32")
    pixels = jax.ShapeDtypeStruct((1, 3, 336, 336), jnp.float32)
    shown = jax.ShapeDtypeStruct((1, 576), jnp.bool_)

    def encode(state, pixels, shown):
        return nnx.merge(graphdef, state).encode_reduced(pixels, reduction, shown)

    counted = jax.jit(encode).lower(state, pixels, shown).cost_analysis()["flops"]
    assert reduction.computed(576) == computed
    assert flops.reduced_tower_flops(config, reduction) == pytest.approx(counted, rel=0.03)
    assert (flops.reduced_tower_flops(config, reduction) < 0.7 * flops.tower_flops(config)) == (computed[-1] < 576)
