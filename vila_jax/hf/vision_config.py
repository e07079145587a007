"""A tower's config -> `VisionConfig`: CLIP, SigLIP and InternViT, with the defaults of their config classes."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from vila_jax.errors import CheckpointError, ConfigError
from vila_jax.hf.section import Section
from vila_jax.nn.config import Activation, TowerKind, VisionConfig

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
    kind: TowerKind
    defaults: dict[str, Any]


TOWER_NAMES: dict[str, str] = {"clip": "CLIP", "siglip": "SigLIP", "intern": "InternViT"}
"""`VisionConfig.kind` -> name for display."""

LLAVA_TOWERS = {
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

VILA_TOWERS = LLAVA_TOWERS | {
    "intern_vit_6b": _Tower(
        "intern",
        {
            "hidden_size": 3200,
            "intermediate_size": 12_800,
            "num_hidden_layers": 48,
            "num_attention_heads": 25,
            "image_size": 224,
            "patch_size": 14,
            "hidden_act": "gelu",
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
"""CLIP ViT-L/14 at 336 px: the tower of a LLaVA config that says nothing about it, and of the published VILA v1."""


def parse_vision(vision: Section, towers: Mapping[str, _Tower] = LLAVA_TOWERS) -> VisionConfig:
    """Reads the config of a tower: LLaVA's `vision_config`, or that of VILA's folder `vision_tower`.

    Args:
      vision: the tower's section.
      towers: those that the model may have, by `model_type`.

    Raises:
      ConfigError: an unknown tower or activation, or sizes that contradict each other.
    """
    tower = vision.choice("model_type", "clip_vision_model", towers)
    default = tower.defaults
    vision.fixed("num_channels", 3)
    intern = tower.kind == "intern"
    if intern:
        vision.fixed("norm_type", "rms_norm")
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
        qk_norm=intern and vision.flag("qk_normalization", True),
        qkv_bias=not intern or vision.flag("qkv_bias", False),
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


def clip_config(shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, Any]:
    """The config of a CLIP tower, told by its tensors; VILA v1 holds no other description of it.

    Heads are 64 wide, as in every CLIP that OpenAI published, which also have the defaults of transformers' class.

    Args:
      shapes: of the tower's tensors, by their name in transformers' `CLIPVisionModel`.
      where: the folder, for messages.

    Raises:
      CheckpointError: these are not the tensors of a CLIP tower.
    """
    embeddings = "vision_model.embeddings"
    try:
        width, _, patch, _ = shapes[f"{embeddings}.patch_embedding.weight"]
        positions, _ = shapes[f"{embeddings}.position_embedding.weight"]
        hidden, _ = shapes["vision_model.encoder.layers.0.mlp.fc1.weight"]
        [_] = shapes[f"{embeddings}.class_embedding"]
    except (KeyError, ValueError):
        raise CheckpointError(
            "the tensors of the vision tower are not those of a CLIP tower", where=where, fix="Supported for v1: CLIP."
        ) from None
    blocks = {match[1] for name in shapes if (match := re.match(r"vision_model\.encoder\.layers\.(\d+)\.", name))}
    return {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": max(width // 64, 1),
        "image_size": math.isqrt(max(positions - 1, 0)) * patch,
        "patch_size": patch,
    }


def _edge(vision: Section, key: str, default: int) -> int:
    """An edge in pixels, written as a number or as a pair of equal numbers."""
    value = vision.get(key)
    if not isinstance(value, list):
        return vision.integer(key, default)
    edges = {Section({key: edge}, vision.name).integer(key, default) for edge in value}
    if len(edges) != 1 or len(value) != 2:
        raise vision.error(key, "one number of pixels, or two equal ones")
    return edges.pop()
