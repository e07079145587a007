"""nano as its Hugging Face checkpoint says: a LLaVA-NeXT in miniature.

Tiles of 48 x 48 pixels in patches of 8: a 96 x 96 picture is an overview of 36 patches and a 2 x 2 grid of tiles, 192
visual tokens with the newlines; a picture of one tile is 78.
"""

import json
from typing import Any

from train.recipe import New
from train.tokenizer import token_settings, tokenizer_files

TILE = 48
PATCH = 8

_IDS = token_settings()
_PINPOINTS = [[48, 48], [48, 96], [96, 48], [96, 96], [144, 48], [48, 144]]

_VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "image_size": TILE,
    "patch_size": PATCH,
    "projection_dim": 128,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}

_TEXT = {
    "model_type": "llama",
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    **{name: _IDS[name] for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")},
}

CONFIG: dict[str, Any] = {
    "architectures": ["LlavaNextForConditionalGeneration"],
    "model_type": "llava_next",
    "image_token_index": _IDS["image_token_index"],
    "image_grid_pinpoints": _PINPOINTS,
    "projector_hidden_act": "gelu",
    "tie_word_embeddings": False,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vision_config": _VISION,
    "text_config": _TEXT,
}

PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "LlavaNextImageProcessor",
    "processor_class": "LlavaNextProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": TILE},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": TILE, "width": TILE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "do_pad": True,
    "image_grid_pinpoints": _PINPOINTS,
}

PROCESSOR: dict[str, Any] = {  # repeats the picture part, which older releases look for in a file of its own
    "processor_class": "LlavaNextProcessor",
    "image_processor": PREPROCESSOR,
    "image_token": "<image>",
    "patch_size": PATCH,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,  # the class token, which the strategy then takes away again
}

GENERATION = {name: _IDS[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def new(vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None) -> New:
    """The model from nothing; `vision` and `text` replace entries of its two configs."""
    config = CONFIG | {"vision_config": _VISION | (vision or {}), "text_config": _TEXT | (text or {})}
    files = {
        "preprocessor_config.json": PREPROCESSOR,
        "processor_config.json": PROCESSOR,
        "generation_config.json": GENERATION,
    }
    return New(config, tokenizer_files() | {name: json.dumps(value, indent=2) + "\n" for name, value in files.items()})
