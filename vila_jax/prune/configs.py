"""The JSON files of a checkpoint with the sizes of the pruned network."""

import json
from collections.abc import Mapping
from typing import Any

from vila_jax.hf.model_config import Layout
from vila_jax.hf.out_tensor import json_bytes
from vila_jax.hf.vision_config import LLAVA_TOWER
from vila_jax.nn.config import VLMConfig

JSON = dict[str, Any]


def with_sizes(files: Mapping[str, bytes], layout: Layout, config: VLMConfig) -> dict[str, bytes]:
    """The files, those changed that say how large the parts are; nothing is left to the defaults of a class.

    Args:
      files: relative path -> contents, of a checkpoint of this layout.
      config: of the pruned network.
    """
    decoder, vision = _decoder(config), {"intermediate_size": config.vision.intermediate_size}
    root = json.loads(files["config.json"])
    changed: dict[str, JSON] = {}
    if layout == "llava":
        tower = root.get("vision_config")
        tower = {"model_type": "clip_vision_model", **LLAVA_TOWER} if tower is None else tower
        changed["config.json"] = root | {
            "text_config": (root.get("text_config") or {}) | decoder,
            "vision_config": tower | vision,
        }
    elif layout == "v1":  # the tower's tensors tell its sizes
        changed["config.json"] = root | decoder | _inside(root, "vision_config", vision)
    else:
        for name, sizes in (("llm/config.json", decoder), ("vision_tower/config.json", vision)):
            changed[name] = json.loads(files[name]) | sizes
        changed["config.json"] = root | _inside(root, "llm_cfg", decoder) | _inside(root, "vision_tower_cfg", vision)
    return {name: json_bytes(changed[name]) if name in changed else data for name, data in files.items()}


def _decoder(config: VLMConfig) -> JSON:
    decoder = config.decoder
    return {
        "intermediate_size": decoder.intermediate_size,
        "num_attention_heads": decoder.num_heads,
        "num_key_value_heads": decoder.num_kv_heads,
        "head_dim": decoder.head_dim,
    }


def _inside(root: JSON, key: str, sizes: JSON) -> JSON:
    """The copy of a part's config that the root may hold."""
    return {key: root[key] | sizes} if isinstance(root.get(key), dict) else {}
