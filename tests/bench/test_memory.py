"""Parameter counts of published models, cache bytes against the real cache, working memory against XLA's own plans."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tests.published import LLAVA_15_7B, LLAVA_NEXT_MISTRAL_7B, LLAVA_NEXT_VICUNA_7B
from vila_jax.bench import memory
from vila_jax.hf.config import parse_config
from vila_jax.hf.load import abstract_model
from vila_jax.nn.decoder import empty_cache
from vila_jax.quantize import Quantization

CLIP = 303_507_456  # CLIP ViT-L/14 at 336 px, all of it
BLOCK = 4 * (1024**2 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 4 * 1024
POST_NORM = 2 * 1024
PROJECTOR = 20_979_712
LLAMA = 6_738_415_616  # Llama-2-7B, vocabulary of 32,000
MISTRAL = 7_241_732_096
MORE_WORDS = 2 * 64 * 4096  # embeddings and head of 32,064 instead

SMALL = parse_config(
    {
        **LLAVA_15_7B,
        "vision_config": {**LLAVA_15_7B["vision_config"], "num_hidden_layers": 2},
        "text_config": {
            "model_type": "llama",
            "vocab_size": 512,
            "hidden_size": 1024,
            "intermediate_size": 2816,
            "num_hidden_layers": 1,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "max_position_embeddings": 4096,
        },
        "image_token_index": 500,
    }
).vlm


@pytest.mark.parametrize(
    ("config", "decoder", "newline"),
    [
        (LLAVA_15_7B, LLAMA + MORE_WORDS, 0),
        (LLAVA_NEXT_VICUNA_7B, LLAMA + MORE_WORDS, 4096),
        (LLAVA_NEXT_MISTRAL_7B, MISTRAL + MORE_WORDS, 4096),
    ],
    ids=["llava-1.5-7b", "llava-next-vicuna-7b", "llava-next-mistral-7b"],
)
def test_published_parameter_counts(config, decoder, newline):
    counts = memory.parameter_counts(parse_config(config).vlm)
    assert counts["vision_tower"] == CLIP - BLOCK - POST_NORM  # neither the last block nor the norm after it is built
    assert counts["projector"] == PROJECTOR
    assert counts.get("newline", 0) == newline
    assert sum(n for part, n in counts.items() if part.startswith("decoder.")) == decoder


def test_the_whole_of_llava_15_has_as_many_parameters_as_published():
    built = sum(memory.parameter_counts(parse_config(LLAVA_15_7B).vlm).values())
    assert built + BLOCK + POST_NORM == 7_063_427_072


def test_cache_of_vicuna_takes_half_a_mebibyte_per_token():
    assert memory.kv_bytes_per_token(parse_config(LLAVA_15_7B).vlm.decoder, 2) == 524_288


def test_cache_bytes_are_those_of_the_real_cache():
    cache = jax.eval_shape(lambda: empty_cache(SMALL.decoder, 3, 192, jnp.bfloat16))
    real = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
    plan = memory.memory_plan(SMALL, itemsize=2, batch=3, tiles=3, prompt=128, cache_length=192, flash=True)
    assert plan.cache == real


def test_cache_bytes_of_a_budget_inside_the_decoder_are_those_of_the_real_cache():
    decoder = dataclasses.replace(SMALL.decoder, num_layers=4)
    lengths = (640, 640, 320, 192)
    cache = jax.eval_shape(lambda: empty_cache(decoder, 2, lengths, jnp.bfloat16))
    real = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
    config = dataclasses.replace(SMALL, decoder=decoder)
    plan = memory.memory_plan(config, itemsize=2, batch=2, tiles=2, prompt=512, cache_length=lengths, flash=True)
    assert plan.cache == real


@pytest.mark.parametrize("spec", ["int8", "int8,parts=decoder+head+embedding+tower,kv=int8", "int4,kv=int8"])
def test_bytes_of_a_quantised_model_are_those_of_the_real_arrays(spec):
    quantization = Quantization.parse(spec)
    sizes = {"itemsize": 2, "batch": 3, "tiles": 3, "prompt": 128, "cache_length": 192, "flash": True}
    plan = memory.memory_plan(SMALL, **sizes, quantization=quantization)
    _, state = abstract_model(SMALL, "bfloat16", quantization)
    assert plan.weights == sum(map(_bytes, jax.tree.leaves(state)))
    cache = jax.eval_shape(lambda: empty_cache(SMALL.decoder, 3, 192, quantization.kv or "bfloat16"))
    assert plan.cache == sum(map(_bytes, jax.tree.leaves(cache)))
    plain = memory.memory_plan(SMALL, **sizes)
    assert plan.weights < plain.weights and (plan.cache < plain.cache) == (quantization.kv is not None)


def _bytes(array):
    """XLA packs values of four bits, which NumPy does not."""
    return array.size // 2 if array.dtype == jnp.int4 else array.size * array.dtype.itemsize


def _temporary_bytes(function, *inputs):
    """What XLA plans to allocate for `function(model, *inputs)` besides weights, inputs and result."""
    graphdef, state = abstract_model(SMALL, "float32")
    program = jax.jit(lambda state, *inputs: function(nnx.merge(graphdef, state), *inputs)).lower(state, *inputs)
    return program.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("length", [512, 1536])
def test_working_memory_of_the_decoder_bounds_what_xla_plans(length):
    embedded = jax.ShapeDtypeStruct((1, length, 1024), jnp.float32)
    positions = jax.ShapeDtypeStruct((1, length), jnp.int32)
    planned = _temporary_bytes(lambda model, x, positions: model.decoder(x, positions)[0], embedded, positions)
    estimate = memory.decoder_working_bytes(SMALL.decoder, 1, length, 4, flash=False)
    assert planned <= 1.1 * estimate <= 1.5 * planned


@pytest.mark.parametrize("tiles", [1, 4])
def test_working_memory_of_the_tower_bounds_what_xla_plans(tiles):
    pixels = jax.ShapeDtypeStruct((tiles, 3, 336, 336), jnp.float32)
    planned = _temporary_bytes(lambda model, pixels: model.encode(pixels)[0], pixels)
    assert planned <= 1.1 * memory.tower_working_bytes(SMALL, tiles, 4, flash=False) <= 3.3 * planned


def test_the_plan_takes_the_hungrier_of_the_two():
    def plan(tiles, prompt):
        return memory.memory_plan(
            SMALL, itemsize=4, batch=1, tiles=tiles, prompt=prompt, cache_length=prompt, flash=False
        ).working

    assert plan(4, 128) == memory.tower_working_bytes(SMALL, 4, 4, flash=False)
    assert plan(1, 1536) == memory.decoder_working_bytes(SMALL.decoder, 1, 1536, 4, flash=False)


def test_flash_attention_saves_the_scores():
    sizes = [memory.decoder_working_bytes(SMALL.decoder, 2, 4000, 2, flash) for flash in (False, True)]
    block = 2 * 16 * 1344 * 2688 * 4  # the scores of the second third of the queries
    assert sizes[0] > 2 * block > block > sizes[1]
