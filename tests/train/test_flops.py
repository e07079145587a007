"""What a step needs, against XLA's own count of its loss and gradients, and against arithmetic by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tests.published import LLAVA_15_7B
from train import lora
from train.flops import stage_flops
from train.metrics.counts import Counts
from train.objective import answer_sums
from train.weights import Structure, split
from vila_jax.bench import flops
from vila_jax.budgets import Step, tokens_of_tile
from vila_jax.budgets.tower import make_reduction
from vila_jax.hf.config import parse_config
from vila_jax.nn.params import abstract
from vila_jax.nn.vlm import VLM

LENGTH = 640

PUBLISHED = parse_config(LLAVA_15_7B).vlm
TWO_BLOCKS = {
    "vision_config": {**LLAVA_15_7B["vision_config"], "num_hidden_layers": 3},
    "text_config": {**LLAVA_15_7B["text_config"], "num_hidden_layers": 2, "num_key_value_heads": 8},
}
LLAVA = parse_config(LLAVA_15_7B | TWO_BLOCKS).vlm
NORMS = dataclasses.replace(LLAVA, projector=dataclasses.replace(LLAVA.projector, norms=True))
"""Widths of LLaVA-1.5-7B with two blocks in each part, and with a projector that begins with a norm."""


def holds(tokens, tiles, visual, lengths):
    return Counts(tokens, tokens, tiles, tiles, visual, lengths)


def counted(config, trained, own):
    """FLOPs of loss and gradients of a row with one tile, as XLA counts them before it compiles."""

    def build(rngs):
        model = VLM(config, rngs=rngs)
        if own is not None:
            lora.add(model, own, rngs=rngs)
        return model

    graphdef, state = abstract(build)
    structure, weights = Structure.of(nnx.merge(graphdef, state))
    chosen, frozen = split(weights, trained, own.groups if own else ())
    row = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)
    given = dict.fromkeys(("token_ids", "targets", "source", "segments", "positions"), row)
    given["pixels"] = jax.ShapeDtypeStruct((1, 1, 3, 336, 336), jnp.float32)

    def loss(chosen, frozen, given):
        return answer_sums(structure.model(chosen | frozen), given, chunk=LENGTH).loss

    return jax.jit(jax.value_and_grad(loss)).lower(chosen, frozen, given).cost_analysis()["flops"]


def not_needed(config):
    """What is computed without need: attention to what is hidden, and the scores of the head once more."""
    decoder = config.decoder
    hidden = LENGTH**2 - LENGTH * (LENGTH + 1) // 2
    pairs = 3 * 4 * decoder.num_heads * decoder.head_dim * hidden * decoder.num_layers
    return pairs + 2 * LENGTH * decoder.hidden_size * decoder.vocab_size


@pytest.mark.parametrize(
    ("config", "trained", "low_rank"),
    [
        (NORMS, ("projector",), ()),
        (LLAVA, ("projector",), ()),
        (LLAVA, ("projector", "decoder"), ()),
        (LLAVA, ("tower", "projector"), ()),
        (LLAVA, ("tower", "projector", "decoder"), ()),
        (LLAVA, ("decoder",), ()),
        (LLAVA, ("projector", "decoder"), ("decoder",)),
        (LLAVA, ("tower", "projector", "decoder"), ("tower", "decoder")),
    ],
    ids=lambda own: "+".join(own) or "whole" if isinstance(own, tuple) else "norms" if own is NORMS else "llava",
)
def test_xla_counts_as_much(config, trained, low_rank):
    own = lora.Lora(rank=64, groups=low_rank) if low_rank else None
    needed = stage_flops(config, trained, lora=own)(holds(LENGTH, 1, 576, (LENGTH,)))
    assert needed + not_needed(config) == pytest.approx(counted(config, trained, own), rel=0.03)


def test_align_and_full_fine_tuning_by_hand():
    """LLaVA-1.5-7B: 6.476 B weights in layers, a head of 4096 x 32,064, 23 blocks of the tower."""
    batch = holds(640, 1, 576, (640,))
    weights, attention = 6_476_005_376 + 4096 * 32_064, 32 * 2 * 4096 * 640 * 641
    first, second = 2 * 576 * 1024 * 4096, 2 * 576 * 4096 * 4096
    tower = flops.tower_flops(PUBLISHED)
    align = tower + 2 * first + 3 * second + 4 * weights * 640 + 3 * attention
    assert stage_flops(PUBLISHED, ("projector",))(batch) == align
    sft = tower + 2 * first + 3 * second + 6 * weights * 640 + 3 * attention
    assert stage_flops(PUBLISHED, ("projector", "decoder"))(batch) == sft
    embedding = 2 * 576 * 588 * 1024
    everything = sft + 2 * (tower - embedding) + embedding + first
    assert stage_flops(PUBLISHED, ("tower", "projector", "decoder"))(batch) == everything


def test_samples_of_a_row_do_not_see_each_other():
    cost = stage_flops(LLAVA, ("projector",))
    two, one = (cost(holds(100, 0, 0, lengths)) for lengths in ((60, 40), (100,)))
    assert one - two == cost.pair * 2 * (100 * 101 - 60 * 61 - 40 * 41) // 2
    window = dataclasses.replace(LLAVA.decoder, sliding_windows=(None, 8))
    cost = stage_flops(dataclasses.replace(LLAVA, decoder=window), ("projector",))
    assert cost(holds(0, 0, 0, (60,))) == cost.pair * (60 * 61 // 2 + flops.visible_pairs(60, 8))


def test_labels_need_no_decoder():
    cost = stage_flops(LLAVA, ("tower",), answers=False)
    whole = stage_flops(LLAVA, ("tower", "projector"))
    assert (cost.tile, cost.visual, cost.token, cost.pair) == (whole.tile, 0, 0, 0)


@pytest.mark.parametrize("spec", ["tower_norm:0.25", "tome:0.25"])
def test_a_budget_inside_the_tower(spec):
    vision = dataclasses.replace(PUBLISHED.vision, num_layers=5)
    config = dataclasses.replace(PUBLISHED, vision=vision, feature_layers=(4,))
    step = Step.parse(spec)
    reduction = make_reduction(step.tower_method, tokens_of_tile(step, 576), config)
    forward = stage_flops(config, ("projector",), reduction=reduction).tile
    assert forward == flops.reduced_tower_flops(config, reduction) < flops.tower_flops(config)
    trained = stage_flops(config, ("tower",), reduction=reduction).tile
    assert trained == 3 * forward - flops.embedding_flops(vision)
    own = lora.Lora(rank=8, groups=("tower",))
    added = stage_flops(config, ("tower",), lora=own, reduction=reduction).tile
    bare = stage_flops(config, ("tower",), lora=dataclasses.replace(own, rank=0), reduction=reduction).tile
    assert forward < bare < added < trained
