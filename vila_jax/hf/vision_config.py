"""`vision_config` -> `VisionConfig`: CLIP and SigLIP, with the defaults of transformers' config classes."""

import dataclasses
from typing import Any, Literal

from vila_jax.errors import ConfigError
from vila_jax.hf.section import Section
from vila_jax.nn.config import Activation, VisionConfig

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""Hugging Face's names of activations -> ours."""


@dataclasses.dataclass(frozen=True)
class _Tower:
    kind: Literal["clip", "siglip"]
    defaults: dict[str, Any]


_TOWERS = {
    "clip_vision_model": _Tower(
        "clip",
        {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 224,
            "patch_size": 32,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
    ),
    "siglip_vision_model": _Tower(
        "siglip",
        {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 224,
            "patch_size": 16,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
        },
    ),
}

LLAVA_TOWER = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
"""The tower of a LLaVA config that says nothing about it: CLIP ViT-L/14 at 336 px."""


def parse_vision(config: Section) -> VisionConfig:
    """Reads the `vision_config` of a LLaVA-style config.

    Raises:
      ConfigError: an unknown tower or activation, or sizes that contradict each other.
    """
    vision = config.section("vision_config")
    if config.get("vision_config") is None:
        vision = Section(LLAVA_TOWER, vision.name)
    tower = vision.choice("model_type", "clip_vision_model", _TOWERS)
    default = tower.defaults
    vision.fixed("num_channels", 3)
    parsed = VisionConfig(
        kind=tower.kind,
        hidden_size=vision.integer("hidden_size", default["hidden_size"]),
        intermediate_size=vision.integer("intermediate_size", default["intermediate_size"]),
        num_layers=vision.integer("num_hidden_layers", default["num_hidden_layers"]),
        num_heads=vision.integer("num_attention_heads", default["num_attention_heads"]),
        image_size=_edge(vision, "image_size", default["image_size"]),
        patch_size=_edge(vision, "patch_size", default["patch_size"]),
        hidden_act=vision.choice("hidden_act", default["hidden_act"], ACTIVATIONS),
        norm_eps=vision.number("layer_norm_eps", default["layer_norm_eps"]),
    )
    if parsed.hidden_size % parsed.num_heads:
        raise ConfigError(
            f"{parsed.num_heads} heads do not divide a hidden size of {parsed.hidden_size}",
            where=vision.where("num_attention_heads"),
        )
    if parsed.patch_size > parsed.image_size:
        raise ConfigError(
            f"a patch of {parsed.patch_size} pixels does not fit an image of {parsed.image_size}",
            where=vision.where("patch_size"),
        )
    return parsed


def _edge(vision: Section, key: str, default: int) -> int:
    """An edge in pixels, written as a number or as a pair of equal numbers."""
    value = vision.get(key)
    if not isinstance(value, list):
        return vision.integer(key, default)
    edges = {Section({key: edge}, vision.name).integer(key, default) for edge in value}
    if len(edges) != 1 or len(value) != 2:
        raise vision.error(key, "one number of pixels, or two equal ones")
    return edges.pop()
