"""Rotary embedding parameters out of a decoder's config, in both spellings in which they have been published.

Until 2025 configs hold `rope_theta` and `rope_scaling`; transformers 5 writes `rope_parameters`. Precedence, defaults
and derived values follow `modeling_rope_utils` of transformers 5.23.
"""

import math
from typing import Literal, get_args

from vila_jax.errors import ConfigError
from vila_jax.hf.section import Section, supported
from vila_jax.nn.config import RopeConfig

Scaling = Literal["default", "linear", "llama3", "dynamic", "yarn"]
_SCALINGS: dict[str, Scaling] = {name: name for name in get_args(Scaling)}
_KNOWN = {
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "partial_rotary_factor",
}


def parse_rope(text: Section, max_position: int) -> RopeConfig:
    """Reads the rotary parameters of a `text_config`.

    Args:
      text: the decoder's section.
      max_position: its `max_position_embeddings`, which stands in for a missing original context.

    Raises:
      ConfigError: an unsupported rule or key, or a rule without the numbers it needs.
    """
    rope = text.section("rope_scaling" if text.get("rope_scaling") else "rope_parameters")
    unknown = sorted(key for key, value in rope.values.items() if key not in _KNOWN and value is not None)
    rule = "rope_type" if rope.get("rope_type") is not None else "type"
    scaling = rope.choice(rule, "default", _SCALINGS)
    if unknown:
        raise rope.error(unknown[0], f"no such key for rope type {scaling!r}", supported(sorted(_KNOWN)))
    for section in (text, rope):
        section.fixed("partial_rotary_factor", 1, 1.0)
    theta = rope.number("rope_theta", text.number("rope_theta", 10_000.0))
    if scaling == "default":
        return RopeConfig(theta=theta)
    if scaling in ("linear", "dynamic"):
        factor = _required(rope, "factor", scaling)
        return RopeConfig(theta=theta, scaling=scaling, factor=factor, original_max_position=max_position)
    # A top-level value wins over the one inside, as in transformers.
    original = rope.integer("original_max_position_embeddings", max_position)
    original = text.integer("original_max_position_embeddings", original)
    if scaling == "llama3":
        return RopeConfig(
            theta=theta,
            scaling="llama3",
            factor=_required(rope, "factor", scaling),
            original_max_position=original,
            low_freq_factor=_required(rope, "low_freq_factor", scaling),
            high_freq_factor=_required(rope, "high_freq_factor", scaling),
        )
    return _yarn(rope, theta, original, max_position)


def _yarn(rope: Section, theta: float, original: int, max_position: int) -> RopeConfig:
    if "factor" not in rope.values:
        raise _missing(rope, "factor", "yarn")
    factor = rope.number("factor", max_position / original)
    return RopeConfig(
        theta=theta,
        scaling="yarn",
        factor=factor,
        original_max_position=original,
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        attention_factor=rope.number("attention_factor", _yarn_attention_factor(rope, factor)),
        truncate=rope.flag("truncate", True),
    )


def _yarn_attention_factor(rope: Section, factor: float) -> float:
    """Temperature of the YaRN paper (arXiv 2309.00071, eq. 22), with DeepSeek's two scales when both are given."""

    def temperature(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return temperature(rope.number("mscale", 1.0)) / temperature(rope.number("mscale_all_dim", 1.0))
    return temperature(1.0)


def _required(rope: Section, key: str, scaling: str) -> float:
    if rope.get(key) is None:
        raise _missing(rope, key, scaling)
    return rope.number(key, 1.0)


def _missing(rope: Section, key: str, scaling: str) -> ConfigError:
    return ConfigError(f"rope type {scaling!r} needs a number here", where=rope.where(key))
