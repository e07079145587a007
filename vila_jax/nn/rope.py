"""Rotary position embedding, in the half-split form of Llama, with the scaling rules of published checkpoints.

Source of the rules: `modeling_rope_utils` of transformers (default, linear, dynamic, llama3, yarn).
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vila_jax.nn.config import RopeConfig


def frequencies(config: RopeConfig, head_dim: int) -> np.ndarray:
    """Inverse wavelength of each rotated pair, float32 `[H/2]`, after scaling (not `dynamic`, which needs a length)."""
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    base = (1.0 / np.float32(config.theta) ** exponent).astype(np.float32)
    match config.scaling:
        case "linear":
            return (base / np.float32(config.factor)).astype(np.float32)
        case "llama3":
            return _llama3(config, base)
        case "yarn":
            return _yarn(config, base, head_dim)
        case _:
            return base


def _llama3(config: RopeConfig, base: np.ndarray) -> np.ndarray:
    """Long waves are stretched by `factor`, short ones kept, those between interpolated."""
    wavelength = 2 * math.pi / base
    longest, shortest = (config.original_max_position / f for f in (config.low_freq_factor, config.high_freq_factor))
    span = config.high_freq_factor - config.low_freq_factor
    smooth = (config.original_max_position / wavelength - config.low_freq_factor) / span
    between = (1 - smooth) * base / config.factor + smooth * base
    scaled = np.where(wavelength > longest, base / config.factor, np.where(wavelength < shortest, base, between))
    return scaled.astype(np.float32)


def _yarn(config: RopeConfig, base: np.ndarray, head_dim: int) -> np.ndarray:
    """Pairs that turn often within the original context are kept, slow ones interpolated, a ramp between."""

    def pair_that_turns(times: float) -> float:
        length = config.original_max_position / (times * 2 * math.pi)
        return head_dim * math.log(length) / (2 * math.log(config.theta))

    low, high = pair_that_turns(config.beta_fast), pair_that_turns(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high = high + 0.001 if low == high else high
    ramp = np.clip((np.arange(head_dim // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    return (base / config.factor * ramp + base * (1 - ramp)).astype(np.float32)


def _dynamic(config: RopeConfig, head_dim: int, length: Int[Array, " B"]) -> Float[Array, "B half"]:
    """NTK scaling: beyond the original context the base grows with the length of the sequence seen so far."""
    length = jnp.maximum(length, config.original_max_position).astype(jnp.float32)
    growth = config.factor * length / config.original_max_position - (config.factor - 1)
    theta = config.theta * growth ** (head_dim / (head_dim - 2))
    exponent = jnp.asarray(np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    return 1.0 / theta[:, None] ** exponent[None, :]


def rotary_angles(
    config: RopeConfig, head_dim: int, positions: Int[Array, "B T"]
) -> tuple[Float[Array, "B T half"], Float[Array, "B T half"]]:
    """Cosine and sine of every position, float32.

    `dynamic` reads the length of a row off its largest position, so padding must repeat a position of its row there.
    """
    if config.scaling == "dynamic":
        inverse = _dynamic(config, head_dim, jnp.max(positions, axis=1) + 1)[:, None, :]
    else:
        inverse = jnp.asarray(frequencies(config, head_dim))[None, None, :]
    angle = positions.astype(jnp.float32)[:, :, None] * inverse
    scale = config.attention_factor
    return jnp.cos(angle) * scale, jnp.sin(angle) * scale


def apply_rope(
    x: Float[Array, "B T N H"], cos: Float[Array, "B T half"], sin: Float[Array, "B T half"]
) -> Float[Array, "B T N H"]:
    """Rotates the pairs (i, i + H/2) of every head, in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def context_length(config: RopeConfig, max_position: int) -> int:
    """Positions a model can be asked for, given the `max_position_embeddings` of its config.

    That number is the context *before* stretching with `linear` and `dynamic`, and the one after it with `llama3`; with
    `yarn` both are in use (Qwen2 says 32768 and factor 4), so the larger wins.
    """
    match config.scaling:
        case "linear" | "dynamic":
            return int(max_position * config.factor)
        case "yarn":
            return max(max_position, int(config.original_max_position * config.factor))
        case _:
            return max_position
