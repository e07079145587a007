"""The decoder against transformers' Llama, Mistral and Qwen2, with every constant that a config can set."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers as hf
from flax import nnx

from tests.nn.oracle import close, decoder_config, randomise, with_weights_of
from vila_jax.nn.config import DecoderConfig, RopeConfig
from vila_jax.nn.decoder import Decoder, empty_cache
from vila_jax.nn.params import abstract

SIZES = dict(
    vocab_size=53,
    hidden_size=24,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
LONG, SHORT = 13, 6  # tokens of the two prompts
STEPS = 6
CACHE = 22  # entries


def _rope(rule: str, theta: float = 10_000.0, **rest) -> dict:
    return dict(rope_parameters=dict(rope_type=rule, rope_theta=theta, **rest))


def _llama(rope: RopeConfig | None = None, act: str = "silu", **theirs):
    return hf.LlamaConfig, hf.LlamaForCausalLM, theirs, dict(rope=rope or RopeConfig(), act=act)


def _mistral(windows: tuple = (), **theirs):
    return hf.MistralConfig, hf.MistralForCausalLM, theirs, dict(rope=RopeConfig(), windows=windows)


def _qwen2(windows: tuple = (), rope: RopeConfig | None = None, **theirs):
    return hf.Qwen2Config, hf.Qwen2ForCausalLM, theirs, dict(rope=rope or RopeConfig(), windows=windows)


YARN = dict(factor=4.0, original_max_position_embeddings=12, beta_fast=3.0, beta_slow=0.5, attention_factor=1.3)
LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
MODELS = {
    "llama, head width of its own, all biases": _llama(
        RopeConfig(theta=5e5), **_rope("default", 5e5), head_dim=10, attention_bias=True, mlp_bias=True
    ),
    "llama, all heads their own keys, large eps, tied, gelu": _llama(
        act="gelu", num_key_value_heads=6, rms_norm_eps=0.1, tie_word_embeddings=True, hidden_act="gelu"
    ),
    "llama, one key head, linear scaling": _llama(
        RopeConfig(scaling="linear", factor=3.0), **_rope("linear", factor=3.0), num_key_value_heads=1
    ),
    # One prompt is longer than the original context, the other grows past it while decoding.
    "llama, dynamic scaling": _llama(
        RopeConfig(scaling="dynamic", factor=2.5, original_max_position=9),
        **_rope("dynamic", factor=2.5),
        max_position_embeddings=9,
    ),
    "llama, llama3 scaling": _llama(
        RopeConfig(
            theta=100.0,
            scaling="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position=16,
        ),
        **_rope("llama3", 100.0, **LLAMA3),
        head_dim=16,
    ),
    "qwen2, yarn scaling": _qwen2(
        rope=RopeConfig(
            theta=100.0,
            scaling="yarn",
            factor=4.0,
            original_max_position=12,
            beta_fast=3.0,
            beta_slow=0.5,
            attention_factor=1.3,
        ),
        **_rope("yarn", 100.0, **YARN),
        num_attention_heads=3,
        num_key_value_heads=3,
    ),
    "mistral, window shorter than both prompts": _mistral((4, 4), sliding_window=4, head_dim=6),
    "mistral, no window": _mistral(sliding_window=None),
    "qwen2, tied": _qwen2(tie_word_embeddings=True, sliding_window=4),
    "qwen2, window in the upper layer": _qwen2(
        (None, 5), use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
}


@functools.cache
def models(name: str):
    """The oracle, and the graph definition and state of ours."""
    config_class, model_class, theirs, ours = MODELS[name]
    config = config_class(**SIZES | theirs)
    oracle = randomise(model_class(config))
    sizes = decoder_config(config, **ours)
    return oracle, *with_weights_of(
        oracle, lambda rngs: Decoder(sizes, rngs=rngs, dtype=jnp.float32), "decoder.", "language_model."
    )


def expected_logits(name: str, ids: np.ndarray) -> torch.Tensor:
    """Logits of one pass over `ids`, `[B, T, C]`."""
    oracle = copy.deepcopy(models(name)[0])  # dynamic scaling remembers the longest sequence it has seen
    with torch.no_grad():
        return oracle(torch.from_numpy(ids), use_cache=False).logits


def expected_decoding(name: str, row: np.ndarray, prompt: int) -> torch.Tensor:
    """Logits `[T, C]` of the prompt in one pass and of the rest token by token, as `generate` does it."""
    oracle = copy.deepcopy(models(name)[0])
    ids = torch.from_numpy(row)[None]
    with torch.no_grad():
        out = oracle(ids[:, :prompt], use_cache=True)
        logits = [out.logits[0]]
        for i in range(prompt, len(row)):
            out = oracle(ids[:, i : i + 1], past_key_values=out.past_key_values, use_cache=True)
            logits.append(out.logits[0])
    return torch.cat(logits)


def random_ids(batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, SIZES["vocab_size"], (batch, length))


@functools.partial(jax.jit, static_argnames="graphdef")
def run(graphdef, state, ids, positions, cache=None, offset=None, segments=None):
    decoder = nnx.merge(graphdef, state)
    hidden, cache = decoder(decoder.embed(ids), positions, cache, offset, segments)
    return decoder.logits(hidden), cache


def cache_for(name: str, batch: int):
    config_class, _, theirs, ours = MODELS[name]
    return empty_cache(decoder_config(config_class(**SIZES | theirs), **ours), batch, CACHE, jnp.float32)


@pytest.mark.parametrize("name", MODELS)
def test_logits(name):
    ids = random_ids(2, LONG)
    _, graphdef, state = models(name)
    positions = jnp.broadcast_to(jnp.arange(LONG)[None, :], (2, LONG))
    logits, cache = run(graphdef, state, jnp.asarray(ids), positions)
    assert cache is None
    close(logits, expected_logits(name, ids))


@pytest.mark.parametrize(
    "name",
    [
        "llama, head width of its own, all biases",
        "llama, dynamic scaling",
        "mistral, window shorter than both prompts",
        "qwen2, window in the upper layer",
    ],
)
def test_cached_decoding_of_rows_of_unequal_length(name):
    """The same as each row alone."""
    ids, lengths = random_ids(2, LONG + STEPS), np.array([LONG, SHORT])
    ids[1] = np.roll(ids[1], 5)
    for row, length, logits in zip(ids, lengths, decode(name, ids, lengths), strict=True):
        close(logits, expected_decoding(name, row[: length + STEPS], length))


@pytest.mark.parametrize("name", ["llama, head width of its own, all biases", "qwen2, window in the upper layer"])
def test_one_token_of_each_row_alone(name):
    """Its hidden state, and all keys and values, are those of reading every token; from the start and further on."""
    _, graphdef, state = models(name)
    ids = jnp.asarray(random_ids(2, LONG))
    positions = jnp.broadcast_to(jnp.arange(LONG)[None, :], (2, LONG))
    only = jnp.asarray([LONG - 1, SHORT - 1])

    @jax.jit
    def read(state, ids, positions, cache, offset=None, only=None):
        decoder = nnx.merge(graphdef, state)
        return decoder(decoder.embed(ids), positions, cache, offset, only=only)

    wanted, cache = read(state, ids, positions, cache_for(name, 2))
    found, own = read(state, ids, positions, cache_for(name, 2), only=only)
    assert found.shape == (2, 1, wanted.shape[-1])
    close(found[:, 0], wanted[jnp.arange(2), only])
    jax.tree.map(close, own, cache)

    offset = jnp.asarray([LONG, SHORT])
    further, (more, places) = offset[:, None] + jnp.arange(4)[None, :], (ids[:, :4], jnp.asarray([3, 1]))
    wanted, later = read(state, more, further, cache, offset)
    found, own = read(state, more, further, cache, offset, places)
    close(found[:, 0], wanted[jnp.arange(2), places])
    jax.tree.map(close, own, later)


def test_cached_decoding_of_one_row():
    name = "qwen2, window in the upper layer"
    ids = random_ids(1, SHORT + STEPS)
    (logits,) = decode(name, ids, np.array([SHORT]))
    close(logits, expected_decoding(name, ids[0], SHORT))


def decode(name: str, ids: np.ndarray, lengths: np.ndarray) -> list[jax.Array]:
    """Logits of every row: prompts padded on the right, then a token at a time at the offset of each row."""
    _, graphdef, state = models(name)
    longest = lengths.max()
    prompts = np.where(np.arange(longest)[None, :] < lengths[:, None], ids[:, :longest], 7)
    positions = np.minimum(np.arange(longest)[None, :], lengths[:, None] - 1)
    logits, cache = run(graphdef, state, jnp.asarray(prompts), jnp.asarray(positions), cache_for(name, len(ids)))
    rows = [[row[:length]] for row, length in zip(logits, lengths, strict=True)]
    for step in range(STEPS):
        offset = lengths + step
        token = jnp.asarray(np.take_along_axis(ids, offset[:, None], axis=1))
        logits, cache = run(graphdef, state, token, jnp.asarray(offset)[:, None], cache, jnp.asarray(offset))
        for row, new in zip(rows, logits, strict=True):
            row.append(new)
    return [jnp.concatenate(row) for row in rows]


@pytest.mark.parametrize(
    "name", ["llama, head width of its own, all biases", "mistral, window shorter than both prompts"]
)
def test_several_tokens_at_an_offset(name):
    """A prompt read in two pieces is the prompt read in one."""
    ids = random_ids(2, LONG)
    _, graphdef, state = models(name)
    positions = jnp.broadcast_to(jnp.arange(LONG)[None, :], (2, LONG))
    first, cache = run(graphdef, state, jnp.asarray(ids[:, :8]), positions[:, :8], cache_for(name, 2))
    second, _ = run(graphdef, state, jnp.asarray(ids[:, 8:]), positions[:, 8:], cache, jnp.full(2, 8))
    close(jnp.concatenate([first, second], axis=1), expected_logits(name, ids))


def test_a_full_cache_drops_what_does_not_fit():
    """A row that is carried along after its end must not write over the entries of its prompt."""
    name = "llama, head width of its own, all biases"
    ids = random_ids(2, LONG)
    _, graphdef, state = models(name)
    positions = jnp.broadcast_to(jnp.arange(LONG)[None, :], (2, LONG))
    _, cache = run(graphdef, state, jnp.asarray(ids), positions, cache_for(name, 2))
    offset = jnp.array([CACHE, CACHE - 1])
    _, after = run(graphdef, state, jnp.zeros((2, 1), jnp.int32), offset[:, None], cache, offset)
    for old, new in zip(jax.tree.leaves(cache), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(new[0], old[0])
        np.testing.assert_array_equal(new[1, :, :-1], old[1, :, :-1])
        assert np.any(new[1, :, -1] != old[1, :, -1])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_decoding_does_not_copy_the_cache(batch, kv_heads):
    """In a jitted loop over a donated cache, steps write in place and read keys and values where they lie."""
    config = DecoderConfig(53, 64, 64, 2, 4, kv_heads, 16, 1e-5, 4096)
    graphdef, state = abstract(lambda rngs: Decoder(config, rngs=rngs, dtype=jnp.float32))
    cache = jax.eval_shape(lambda: empty_cache(config, batch, 4096, jnp.float32))

    @functools.partial(jax.jit, donate_argnames="cache")
    def decode(state, token, offset, cache):
        decoder = nnx.merge(graphdef, state)

        def step(carry, _):
            token, offset, cache = carry
            hidden, cache = decoder(decoder.embed(token[:, None]), offset[:, None], cache, offset)
            token = jnp.argmax(decoder.logits(hidden[:, 0]), axis=-1).astype(jnp.int32)
            return (token, offset + 1, cache), token

        return jax.lax.scan(step, (token, offset, cache), None, length=4)

    row = jax.ShapeDtypeStruct((batch,), jnp.int32)
    memory = decode.lower(state, row, row, cache).compile().memory_analysis()
    layers = jax.tree.leaves(cache)
    assert memory.alias_size_in_bytes >= sum(array.size * 4 for array in layers)
    assert memory.temp_size_in_bytes < layers[0].size * 4 / 2


@pytest.mark.parametrize("prefix", [0, 4])
def test_packed_samples(prefix):
    """Two samples packed into one row, behind a prefix that both see, give what each gives alone."""
    name = "llama, head width of its own, all biases"
    ids = random_ids(1, LONG)
    cut = 9
    segments = np.repeat([0, 1, 2], [prefix, cut - prefix, LONG - cut])[None]
    positions = np.concatenate([np.arange(cut), prefix + np.arange(LONG - cut)])[None]
    _, graphdef, state = models(name)
    logits, _ = run(
        graphdef, state, jnp.asarray(ids), jnp.asarray(positions), segments=jnp.asarray(segments, jnp.int32)
    )
    close(logits[:, :cut], expected_logits(name, ids[:, :cut]))
    alone = np.concatenate([ids[:, :prefix], ids[:, cut:]], axis=1)
    close(logits[:, cut:], expected_logits(name, alone)[:, prefix:])
