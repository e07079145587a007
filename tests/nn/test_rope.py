"""Rotary frequencies against transformers' rules, with the numbers of published checkpoints."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers as hf
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from vila_jax.nn.config import RopeConfig
from vila_jax.nn.rope import context_length, rotary_angles

# name: head width, max_position_embeddings, their parameters, ours
RULES = {
    "llama 2": (128, 4096, dict(rope_type="default", rope_theta=1e4), RopeConfig()),
    "llama 3.1": (
        128,
        131_072,
        dict(
            rope_type="llama3",
            rope_theta=5e5,
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=8192,
        ),
        RopeConfig(
            theta=5e5,
            scaling="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position=8192,
        ),
    ),
    "vicuna 16k": (
        128,
        4096,
        dict(rope_type="linear", rope_theta=1e4, factor=4.0),
        RopeConfig(scaling="linear", factor=4.0),
    ),
    "dynamic": (
        80,
        2048,
        dict(rope_type="dynamic", rope_theta=1e4, factor=2.0),
        RopeConfig(scaling="dynamic", factor=2.0, original_max_position=2048),
    ),
    "qwen2 128k": (
        128,
        32_768,
        dict(rope_type="yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=32_768),
        RopeConfig(
            theta=1e6, scaling="yarn", factor=4.0, original_max_position=32_768, attention_factor=0.1 * np.log(4) + 1
        ),
    ),
    "yarn, range not rounded, not inside the head": (
        36,
        64,
        dict(
            rope_type="yarn",
            rope_theta=50.0,
            factor=3.0,
            original_max_position_embeddings=16,
            beta_fast=7.0,
            beta_slow=0.01,
            attention_factor=0.7,
            truncate=False,
        ),
        RopeConfig(
            theta=50.0,
            scaling="yarn",
            factor=3.0,
            original_max_position=16,
            beta_fast=7.0,
            beta_slow=0.01,
            attention_factor=0.7,
            truncate=False,
        ),
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_cosines_and_sines(name):
    head_dim, max_position, theirs, ours = RULES[name]
    config = hf.LlamaConfig(head_dim=head_dim, max_position_embeddings=max_position, rope_parameters=theirs)
    positions = np.array([[0, 1, 2, 17, 311, 575, 2047], [5, 3000, 2880, 577, 1, 0, 9]])
    for row in positions:
        oracle = LlamaRotaryEmbedding(config)  # anew: the dynamic rule remembers
        cos, sin = oracle(torch.zeros(1), torch.from_numpy(row)[None])
        found = rotary_angles(ours, head_dim, jnp.asarray(row)[None])
        for mine, expected in zip(found, (cos, sin), strict=True):
            # float32 angles of a few thousand radians: their last bit is 2e-4
            np.testing.assert_allclose(mine, expected[..., : head_dim // 2].numpy(), atol=5e-4)


@pytest.mark.parametrize(
    ("config", "max_position", "expected"),
    [
        (RopeConfig(), 4096, 4096),
        (RopeConfig(scaling="linear", factor=4.0), 4096, 16_384),
        (RopeConfig(scaling="dynamic", factor=2.5, original_max_position=2048), 2048, 5120),
        (RopeConfig(scaling="llama3", factor=8.0, original_max_position=8192), 131_072, 131_072),
        (RopeConfig(scaling="yarn", factor=4.0, original_max_position=32_768), 32_768, 131_072),
        (RopeConfig(scaling="yarn", factor=40.0, original_max_position=4096), 163_840, 163_840),
    ],
)
def test_context_length(config, max_position, expected):
    """The contexts that the model cards of such checkpoints state."""
    assert context_length(config, max_position) == expected
