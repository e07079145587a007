"""`config.json` of published checkpoints (written from memory), which leave most values to their class's defaults.

VILA's root configs are given with the configs of their parts, as an opened checkpoint holds them.
"""

_TOWER = {
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
    "vocab_size": 32000,
}
_VICUNA = {
    "_name_or_path": "lmsys/vicuna-7b-v1.5",
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "rms_norm_eps": 1e-05,
    "torch_dtype": "float16",
    "vocab_size": 32064,
}
_MISTRAL = {
    "_name_or_path": "mistralai/Mistral-7B-Instruct-v0.2",
    "architectures": ["MistralForCausalLM"],
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
    "vocab_size": 32064,
}
_COMMON = {
    "ignore_index": -100,
    "image_token_index": 32000,
    "projector_hidden_act": "gelu",
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vision_config": _TOWER,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vocab_size": 32064,
}
_NEXT = _COMMON | {
    "architectures": ["LlavaNextForConditionalGeneration"],
    "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    "model_type": "llava_next",
    "use_image_newline_parameter": True,
}

LLAVA_15_7B = _COMMON | {
    "architectures": ["LlavaForConditionalGeneration"],
    "model_type": "llava",
    "pad_token_id": 32001,
    "text_config": _VICUNA,
}
LLAVA_NEXT_VICUNA_7B = _NEXT | {"text_config": _VICUNA}
LLAVA_NEXT_MISTRAL_7B = _NEXT | {"text_config": _MISTRAL}


def _llm(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, **other) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "max_position_embeddings": 4096,
        "model_max_length": 4096,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": 32000,
    } | other


def _qwen(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, **other) -> dict:
    qwen = {
        "architectures": ["Qwen2ForCausalLM"],
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "model_type": "qwen2",
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "use_sliding_window": False,
        "vocab_size": 152064,
    }
    return _llm(hidden, intermediate, layers, heads, kv_heads) | qwen | other


_SHEARED_LLAMA_2_7B = _llm(2560, 6912, 32, 20, 20)
_LLAMA_3_8B = _llm(
    4096,
    14336,
    32,
    32,
    8,
    bos_token_id=128000,
    eos_token_id=128001,
    max_position_embeddings=8192,
    rope_theta=500000.0,
    vocab_size=128256,
)
_VICUNA_13B = _llm(5120, 13824, 40, 40, 40)
_YI_34B = _llm(7168, 20480, 60, 56, 8, eos_token_id=7, rope_theta=5000000.0, vocab_size=64000)
_QWEN_1_5B = _qwen(1536, 8960, 28, 12, 2, tie_word_embeddings=True, vocab_size=151936)
_QWEN_7B = _qwen(3584, 18944, 28, 28, 4)
_QWEN_14B = _qwen(5120, 13824, 48, 40, 8)

_SIGLIP = {
    "architectures": ["SiglipVisionModel"],
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "image_size": 384,
    "intermediate_size": 4304,
    "layer_norm_eps": 1e-06,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 27,
    "patch_size": 14,
}
_SIGLIP_448 = _SIGLIP | {
    "image_size": 448,
    "num_image_tokens": 256,
    "num_positions": 1024,
    "projection_dim": 2048,
    "vision_use_head": False,
}
_INTERN = {
    "architectures": ["InternVisionModel"],
    "attention_dropout": 0.0,
    "drop_path_rate": 0.0,
    "dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_size": 3200,
    "image_size": 448,
    "initializer_factor": 0.1,
    "initializer_range": 1e-10,
    "intermediate_size": 12800,
    "layer_norm_eps": 1e-06,
    "model_type": "intern_vit_6b",
    "num_attention_heads": 25,
    "num_channels": 3,
    "num_hidden_layers": 45,
    "patch_size": 14,
    "qk_normalization": True,
    "qkv_bias": False,
    "use_flash_attn": True,
}

_V1 = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "freeze_mm_mlp_adapter": False,
    "image_aspect_ratio": "pad",
    "mm_hidden_size": 1024,
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "model_type": "llava_llama",
    "pretraining_tp": 1,
    "rope_scaling": None,
    "tokenizer_model_max_length": 4096,
    "tokenizer_padding_side": "right",
    "tune_mm_mlp_adapter": False,
    "use_mm_proj": True,
}


def _v1(llm: dict) -> dict:
    return {key: value for key, value in llm.items() if key != "model_max_length"} | _V1


def _vila(llm: dict, tower: dict, projector: str, **other) -> dict:
    """A root config of the generation of VILA1.5; `other` are the keys in which a model differs from it."""
    return {
        "_name_or_path": "./checkpoints/stage3",
        "architectures": ["LlavaLlamaModel"],
        "hidden_size": llm["hidden_size"],
        "image_aspect_ratio": "resize",
        "interpolate_mode": "linear",
        "llm_cfg": llm,
        "mm_hidden_size": tower["hidden_size"],
        "mm_projector_cfg": {
            "architectures": ["MultimodalProjector"],
            "mm_projector_type": projector,
            "model_type": "v2l_projector",
        },
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "cls_patch",
        "mm_vision_select_layer": -2,
        "model_dtype": "torch.bfloat16",
        "model_type": "llava_llama",
        "num_video_frames": 8,
        "resume_path": "./checkpoints/stage3",
        "s2": False,
        "s2_max_split_size": 336,
        "s2_scales": "336,672,1008",
        "vision_resolution": -1,
        "vision_tower_cfg": tower,
    } | other


_NVILA_LITE = {
    "chat_template": "qwen2",
    "image_aspect_ratio": "dynamic",
    "image_encoder": '{"_target_": "llava.model.encoders.BasicImageEncoder"}',
    "max_tiles": 12,
    "min_tiles": 1,
    "video_max_tiles": 1,
}
_NVILA = _NVILA_LITE | {
    "dynamic_s2": True,
    "image_aspect_ratio": "dynamic_s2",
    "mm_hidden_size": 3456,
    "s2_max_split_size": 448,
    "s2_resize_output_to_scale_idx": -1,
    "s2_scales": "448,896,1344",
}
_TWO_SCALES = {"s2": True, "s2_scales": "384,768", "s2_max_split_size": 384, "mm_hidden_size": 2304}
_THREE = "mlp_downsample_3x3_fix"

VILA = {
    "VILA-7b": _v1(_llm(4096, 11008, 32, 32, 32)),
    "VILA-13b": _v1(_VICUNA_13B),
    "VILA1.5-3b": _vila(_SHEARED_LLAMA_2_7B, _SIGLIP, "mlp_downsample"),
    "VILA1.5-3b-s2": _vila(_SHEARED_LLAMA_2_7B, _SIGLIP, "mlp_downsample", **_TWO_SCALES),
    "Llama-3-VILA1.5-8b": _vila(_LLAMA_3_8B, _SIGLIP, "mlp_downsample"),
    "VILA1.5-13b": _vila(_VICUNA_13B, _SIGLIP, "mlp_downsample"),
    "VILA1.5-40b": _vila(
        _YI_34B, _INTERN, "mlp_downsample", mm_vision_select_layer=-1, mm_vision_select_feature="patch"
    ),
    "NVILA-Lite-2B": _vila(_QWEN_1_5B, _SIGLIP_448, _THREE, **_NVILA_LITE),
    "NVILA-Lite-8B": _vila(_QWEN_7B, _SIGLIP_448, _THREE, **_NVILA_LITE),
    "NVILA-Lite-15B": _vila(_QWEN_14B, _SIGLIP_448, _THREE, **_NVILA_LITE),
    "NVILA-8B": _vila(_QWEN_7B, _SIGLIP_448, "mlp_downsample", **_NVILA),
    "NVILA-15B": _vila(_QWEN_14B, _SIGLIP_448, "mlp_downsample", **_NVILA),
}
"""Name of the model -> its config."""
