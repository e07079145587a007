"""A decoder's config -> `DecoderConfig`: Llama, Mistral and Qwen2, with the defaults of their config classes."""

import dataclasses
from typing import Any

from vila_jax.errors import ConfigError
from vila_jax.hf.rope import parse_rope
from vila_jax.hf.section import Section, supported
from vila_jax.hf.vision_config import ACTIVATIONS
from vila_jax.nn.config import DecoderConfig


@dataclasses.dataclass(frozen=True)
class _Decoder:
    """What a published config may leave out, per model type."""

    display: str
    defaults: dict[str, Any]
    qkv_bias: bool = False
    has_bias_switches: bool = False  # `attention_bias` and `mlp_bias` are keys of Llama alone


_DECODERS = {
    "llama": _Decoder(
        "Llama",
        {
            "vocab_size": 32_000,
            "intermediate_size": 11_008,
            "num_key_value_heads": None,
            "max_position_embeddings": 2_048,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        has_bias_switches=True,
    ),
    "mistral": _Decoder(
        "Mistral",
        {
            "vocab_size": 32_000,
            "intermediate_size": 14_336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131_072,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "qwen2": _Decoder(
        "Qwen2",
        {
            "vocab_size": 151_936,
            "intermediate_size": 22_016,
            "num_key_value_heads": 32,
            "max_position_embeddings": 32_768,
            "bos_token_id": None,
            "eos_token_id": None,
        },
        qkv_bias=True,
    ),
}


def decoder_defaults(text: Section) -> tuple[str, dict[str, Any]]:
    """Display name of the decoder family, and the values that its configs may leave out."""
    family = text.choice("model_type", "llama", _DECODERS)
    return family.display, family.defaults


def parse_text(text: Section, tie_embeddings: bool) -> DecoderConfig:
    """Reads the config of a decoder: LLaVA's `text_config`, or that of VILA's folder `llm`.

    Args:
      text: the decoder's section.
      tie_embeddings: whether the head is the embedding table (the whole config decides that).

    Raises:
      ConfigError: an unknown decoder, activation, rope rule or attention pattern, or contradictory sizes.
    """
    family = text.choice("model_type", "llama", _DECODERS)
    default = family.defaults
    for key in ("quantization_config", "per_layer_config"):
        text.fixed(key)
    text.fixed("pruned_heads", {})
    if not family.has_bias_switches:
        text.fixed("attention_bias", family.qkv_bias)
        text.fixed("mlp_bias", False)
    bias = family.has_bias_switches and text.flag("attention_bias", False)
    hidden_size, num_heads = text.integer("hidden_size", 4096), text.integer("num_attention_heads", 32)
    num_kv_heads = text.optional_integer("num_key_value_heads", default["num_key_value_heads"]) or num_heads
    num_layers = text.integer("num_hidden_layers", 32)
    max_position = text.integer("max_position_embeddings", default["max_position_embeddings"])
    _check_heads(text, hidden_size, num_heads, num_kv_heads)
    return DecoderConfig(
        vocab_size=text.integer("vocab_size", default["vocab_size"]),
        hidden_size=hidden_size,
        intermediate_size=text.integer("intermediate_size", default["intermediate_size"]),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=_head_dim(text, hidden_size, num_heads),
        norm_eps=text.number("rms_norm_eps", 1e-6),
        max_position=max_position,
        rope=parse_rope(text, max_position),
        hidden_act=text.choice("hidden_act", "silu", ACTIVATIONS),
        qkv_bias=family.qkv_bias or bias,
        out_bias=bias,
        mlp_bias=family.has_bias_switches and text.flag("mlp_bias", False),
        tie_embeddings=tie_embeddings,
        sliding_windows=_sliding_windows(text, family, num_layers),
    )


def _check_heads(text: Section, hidden_size: int, num_heads: int, num_kv_heads: int) -> None:
    if num_heads % num_kv_heads:
        raise ConfigError(
            f"{num_kv_heads} key/value heads do not divide {num_heads} heads", where=text.where("num_key_value_heads")
        )
    if text.get("head_dim") is None and hidden_size % num_heads:
        raise ConfigError(
            f"{num_heads} heads do not divide a hidden size of {hidden_size}, and no head_dim is given",
            where=text.where("num_attention_heads"),
        )


def _head_dim(text: Section, hidden_size: int, num_heads: int) -> int:
    head_dim = text.optional_integer("head_dim", None) or hidden_size // num_heads
    if head_dim % 2:
        raise ConfigError(
            f"rotary embedding needs an even head width, this is {head_dim}", where=text.where("head_dim")
        )
    return head_dim


def _sliding_windows(text: Section, family: _Decoder, num_layers: int) -> tuple[int | None, ...]:
    """Attention window of every layer, or nothing when all see everything."""
    if family.display == "Llama":
        text.fixed("sliding_window")
        kinds = _layer_types(text, num_layers, ["full_attention"] * num_layers)
        return _windows(text, kinds, None)
    if family.display == "Mistral":
        window = text.optional_integer("sliding_window", 4096)
        kind = "full_attention" if window is None else "sliding_attention"
        text.fixed("layer_types", [kind] * num_layers)
        return _windows(text, [kind] * num_layers, window)
    window = text.optional_integer("sliding_window", 4096) if text.flag("use_sliding_window", False) else None
    first = text.integer("max_window_layers", 28, minimum=0)
    slides = [window is not None and layer >= first for layer in range(num_layers)]
    kinds = ["sliding_attention" if sliding else "full_attention" for sliding in slides]
    return _windows(text, _layer_types(text, num_layers, kinds), window)


def _layer_types(text: Section, num_layers: int, default: list[str]) -> list[str]:
    kinds = text.get("layer_types")
    if kinds is None:
        return default
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or len(kinds) != num_layers or any(kind not in known for kind in kinds):
        raise text.error("layer_types", f"a list of {num_layers} names, one a layer", supported(known))
    return kinds


def _windows(text: Section, kinds: list[str], window: int | None) -> tuple[int | None, ...]:
    if "sliding_attention" not in kinds:
        return ()
    if window is None:
        raise text.error("sliding_window", "an integer, because some layer_types are 'sliding_attention'")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
