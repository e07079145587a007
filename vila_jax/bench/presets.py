"""Models by their published shapes, without weights: what is measured, planned and lowered where none are at hand.

A preset is the `config.json` of a published checkpoint, reduced to what decides shapes. Sources: the configs on the Hub
of llava-hf/llava-1.5-7b-hf and -13b-hf, llava-hf/llava-v1.6-vicuna-7b-hf, Efficient-Large-Model/VILA-7b and -13b,
VILA1.5-3b, Llama-3-VILA1.5-8B, NVILA-8B and NVILA-Lite-8B; `nvila-1.5b` is put together with Qwen2-1.5B's widths.
`mid-0.3b` and `tiny` are ours: the first is large enough to show on a CPU what holds for large models, the second is
for tests.
"""

import copy
import difflib
from typing import Any

from vila_jax.errors import ConfigError
from vila_jax.hf.config import ModelConfig, parse_config
from vila_jax.vision.preprocess import PreprocessConfig, Preprocessor
from vila_jax.vision.vila import VilaPreprocessor

JSON = dict[str, Any]


def _clip(width: int, ffn: int, layers: int, heads: int, image: int, patch: int = 14) -> JSON:
    return {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": image,
        "patch_size": patch,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }


def _siglip(image: int) -> JSON:
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": image,
        "patch_size": 14,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    }


def _decoder(family: str, width: int, ffn: int, layers: int, heads: int, vocabulary: int, **others: Any) -> JSON:
    return {
        "model_type": family,
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": vocabulary,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    } | others


_CLIP_336 = _clip(1024, 4096, 24, 16, 336)
_LLAMA_7B = ("llama", 4096, 11008, 32, 32)
_LLAMA_13B = ("llama", 5120, 13824, 40, 40)
_LLAMA3_8B = ("llama", 4096, 14336, 32, 32, 128_256)
_LLAMA3: dict[str, Any] = {"num_key_value_heads": 8, "rope_theta": 5e5, "max_position_embeddings": 8192}
_QWEN2_7B = ("qwen2", 3584, 18944, 28, 28, 152_064)
_QWEN2: dict[str, Any] = {"num_key_value_heads": 4, "rope_theta": 1e6, "rms_norm_eps": 1e-6}
_QWEN2 |= {"max_position_embeddings": 32768}
_QWEN2_TIED = _QWEN2 | {"num_key_value_heads": 2, "tie_word_embeddings": True}
_ANY_RES = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def _llava(tower: JSON, decoder: JSON, **others: Any) -> JSON:
    return {
        "model_type": "llava",
        "vision_config": tower,
        "text_config": decoder,
        "image_token_index": decoder["vocab_size"] - 64,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    } | others


def _vila(tower: JSON, decoder: JSON, projector: str, **others: Any) -> JSON:
    return {
        "model_type": "llava_llama",
        "architectures": ["LlavaLlamaModel"],
        "llm_cfg": decoder,
        "vision_tower_cfg": tower,
        "mm_projector_cfg": {"model_type": "v2l_projector", "mm_projector_type": projector},
        "hidden_size": decoder["hidden_size"],
        "mm_hidden_size": tower["hidden_size"],
        "image_aspect_ratio": "resize",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "cls_patch",
    } | others


_CONFIGS: dict[str, JSON] = {
    "llava-1.5-7b": _llava(_CLIP_336, _decoder(*_LLAMA_7B, 32064)),
    "llava-1.5-13b": _llava(_CLIP_336, _decoder(*_LLAMA_13B, 32064)),
    "llava-next-7b": _llava(
        _CLIP_336, _decoder(*_LLAMA_7B, 32064), model_type="llava_next", image_grid_pinpoints=_ANY_RES
    ),
    "vila-7b": _vila(_CLIP_336, _decoder(*_LLAMA_7B, 32000), "mlp2x_gelu", mm_vision_select_feature="patch"),
    "vila-13b": _vila(_CLIP_336, _decoder(*_LLAMA_13B, 32000), "mlp2x_gelu", mm_vision_select_feature="patch"),
    "vila1.5-3b": _vila(_siglip(384), _decoder("llama", 2560, 6912, 32, 20, 32000), "mlp_downsample"),
    "vila1.5-8b": _vila(_siglip(384), _decoder(*_LLAMA3_8B, **_LLAMA3), "mlp_downsample"),
    "nvila-8b": _vila(_siglip(448), _decoder(*_QWEN2_7B, **_QWEN2), "mlp_downsample_2x2_fix"),
    "nvila-lite-8b": _vila(_siglip(448), _decoder(*_QWEN2_7B, **_QWEN2), "mlp_downsample_3x3_fix"),
    "nvila-1.5b": _vila(
        _siglip(448),
        _decoder(
            "qwen2", 1536, 8960, 28, 12, 151_936, **(_QWEN2 | {"num_key_value_heads": 2, "tie_word_embeddings": True})
        ),
        "mlp_downsample_2x2_fix",
    ),
    "mid-0.3b": _llava(_clip(512, 2048, 13, 8, 336), _decoder("llama", 1024, 2816, 20, 16, 32064)),
    "tiny": _llava(_clip(32, 64, 3, 4, 56), _decoder("llama", 48, 96, 2, 4, 128, num_key_value_heads=2)),
}

PRESETS = tuple(_CONFIGS)
"""Their names."""


def preset_json(name: str) -> JSON:
    """The `config.json` of a preset.

    Raises:
      ConfigError: there is none of this name.
    """
    if name not in _CONFIGS:
        close = difflib.get_close_matches(name, _CONFIGS, 1)
        fix = f"Did you mean {close[0]!r}?" if close else f"There are {', '.join(PRESETS)}."
        raise ConfigError(f"there is no preset {name!r}", where="preset", fix=fix)
    return copy.deepcopy(_CONFIGS[name])


def preset(name: str) -> ModelConfig:
    """A preset as the network that it describes; see `preset_json`."""
    return parse_config(preset_json(name))


def processor_json(name: str) -> JSON:
    """The `preprocessor_config.json` of a preset of LLaVA."""
    config = preset_json(name)
    edge, pinpoints = config["vision_config"]["image_size"], config.get("image_grid_pinpoints")
    sizes = {"size": {"shortest_edge": edge}, "crop_size": {"height": edge, "width": edge}}
    if pinpoints is None:
        return {"image_processor_type": "CLIPImageProcessor"} | sizes
    return {"image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": pinpoints} | sizes


def preset_preprocessor(name: str) -> Preprocessor | VilaPreprocessor:
    """How pictures are prepared for a preset."""
    config = preset(name)
    if config.pictures is not None:
        return VilaPreprocessor(config.pictures)
    files = PreprocessConfig.from_hf(processor_json(name), model_type=config.model_type)
    return Preprocessor(files, config.vlm.vision.patch_size)
