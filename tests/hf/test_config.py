"""`parse_config` against transformers' config classes, on configs that leave out as much as published ones do."""

import copy

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers as hf
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tests.published import LLAVA_15_7B, LLAVA_NEXT_MISTRAL_7B, LLAVA_NEXT_VICUNA_7B
from vila_jax.errors import ConfigError
from vila_jax.hf.config import ModelConfig, parse_config
from vila_jax.nn.layers import ACTIVATIONS
from vila_jax.nn.rope import rotary_angles

SMALL = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 4}

PUBLISHED = {
    "llava-1.5-7b": LLAVA_15_7B,
    "llava-v1.6-vicuna-7b": LLAVA_NEXT_VICUNA_7B,
    "llava-v1.6-mistral-7b": LLAVA_NEXT_MISTRAL_7B,
}

PARTIAL = PUBLISHED | {
    "nothing": {"model_type": "llava"},
    "nothing, next": {"model_type": "llava_next"},
    "empty parts": {"model_type": "llava", "text_config": {}, "vision_config": {}},
    "defaults of mistral": {"model_type": "llava", "text_config": {"model_type": "mistral"}},
    "defaults of qwen2": {"model_type": "llava_next", "text_config": {"model_type": "qwen2"}},
    "defaults of siglip": {
        "model_type": "llava",
        "vision_config": {"model_type": "siglip_vision_model"},
        "vision_feature_select_strategy": "full",
    },
    "null key/value heads": {
        "model_type": "llava",
        "text_config": {"model_type": "qwen2", "num_key_value_heads": None, "rope_theta": 1e6, "pad_token_id": 5},
    },
    "biases and head width": {
        "model_type": "llava",
        "text_config": SMALL | {"attention_bias": True, "mlp_bias": True, "head_dim": 6, "num_key_value_heads": 2},
        "multimodal_projector_bias": False,
        "projector_hidden_act": "quick_gelu",
    },
    "tied in the text": {"model_type": "llava", "text_config": SMALL | {"tie_word_embeddings": True}},
    "tied in the text, next": {"model_type": "llava_next", "text_config": SMALL | {"tie_word_embeddings": True}},
    "tied above, next": {"model_type": "llava_next", "text_config": SMALL, "tie_word_embeddings": True},
    "negative layers": {"model_type": "llava", "vision_feature_layer": [-25, -3, -1]},
    "positive layers": {"model_type": "llava", "vision_feature_layer": [0, 12, 24]},
    "class token": {"model_type": "llava", "vision_feature_select_strategy": "full", "vision_feature_layer": 7},
    "several ends": {"model_type": "llava", "text_config": {"eos_token_id": [7, 9], "bos_token_id": 3}},
    "other activations": {
        "model_type": "llava",
        "vision_config": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3, "image_size": [64, 64], "patch_size": 16},
        "text_config": {"hidden_act": "gelu_pytorch_tanh"},
        "projector_hidden_act": "gelu_fast",
    },
    "window of qwen2": {
        "model_type": "llava",
        "text_config": SMALL
        | {
            "model_type": "qwen2",
            "num_key_value_heads": 2,
            "use_sliding_window": True,
            "sliding_window": 9,
            "max_window_layers": 3,
        },
    },
    "layer types of qwen2": {
        "model_type": "llava",
        "text_config": SMALL
        | {
            "model_type": "qwen2",
            "num_key_value_heads": 2,
            "use_sliding_window": True,
            "sliding_window": 9,
            "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
        },
    },
    "other placeholder key": {"model_type": "llava", "image_token_id": 11},
    "pinpoints": {"model_type": "llava_next", "image_grid_pinpoints": [[336, 1344], [672, 672]]},
}


def _theirs(config: dict) -> hf.PreTrainedConfig:
    config = copy.deepcopy(config)
    config_class = {"llava": hf.LlavaConfig, "llava_next": hf.LlavaNextConfig}[config.pop("model_type")]
    return config_class.from_dict(config)


@pytest.mark.parametrize("name", PARTIAL)
def test_network_equals_transformers(name):
    ours, theirs = parse_config(PARTIAL[name]).vlm, _theirs(PARTIAL[name])
    vision, text = theirs.vision_config, theirs.text_config
    edge = vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0]
    assert ours.vision.kind == vision.model_type.split("_")[0]
    assert ours.vision.hidden_size == vision.hidden_size
    assert ours.vision.intermediate_size == vision.intermediate_size
    assert ours.vision.num_layers == vision.num_hidden_layers
    assert ours.vision.num_heads == vision.num_attention_heads
    assert ours.vision.image_size == edge
    assert ours.vision.patch_size == vision.patch_size
    assert ours.vision.norm_eps == vision.layer_norm_eps
    decoder = ours.decoder
    assert decoder.vocab_size == text.vocab_size
    assert decoder.hidden_size == text.hidden_size
    assert decoder.intermediate_size == text.intermediate_size
    assert decoder.num_layers == text.num_hidden_layers
    assert decoder.num_heads == text.num_attention_heads
    assert decoder.num_kv_heads == text.num_key_value_heads
    assert decoder.head_dim == getattr(text, "head_dim", text.hidden_size // text.num_attention_heads)
    assert decoder.norm_eps == text.rms_norm_eps
    assert decoder.max_position == text.max_position_embeddings
    assert decoder.rope.theta == text.rope_parameters["rope_theta"]
    assert decoder.qkv_bias == (text.model_type == "qwen2" or getattr(text, "attention_bias", False))
    assert decoder.out_bias == getattr(text, "attention_bias", False)
    assert decoder.mlp_bias == getattr(text, "mlp_bias", False)
    assert decoder.tie_embeddings == theirs.tie_word_embeddings
    layers = theirs.vision_feature_layer
    layers = layers if isinstance(layers, list) else [layers]
    states = list(range(vision.num_hidden_layers + 1))
    assert ours.feature_layers == tuple(states[i] for i in layers)
    assert ours.keep_class_token == (theirs.vision_feature_select_strategy == "full")
    assert ours.projector.in_features == vision.hidden_size * len(layers)
    assert ours.projector.out_features == text.hidden_size
    assert ours.projector.bias == theirs.multimodal_projector_bias
    assert ours.has_newline == (theirs.model_type == "llava_next")


@pytest.mark.parametrize("name", PARTIAL)
def test_windows_equal_transformers(name):
    decoder, text = parse_config(PARTIAL[name]).vlm.decoder, _theirs(PARTIAL[name]).text_config
    for layer in range(decoder.num_layers):
        slides = text.model_type == "mistral" or getattr(text, "layer_types", [""] * 99)[layer] == "sliding_attention"
        assert decoder.sliding_window(layer) == (text.sliding_window if slides else None)


@pytest.mark.parametrize("name", PARTIAL)
def test_activations_equal_transformers(name):
    ours, theirs = parse_config(PARTIAL[name]).vlm, _theirs(PARTIAL[name])
    x = np.linspace(-4, 4, 41, dtype=np.float32)
    for mine, act in (
        (ours.vision.hidden_act, theirs.vision_config.hidden_act),
        (ours.decoder.hidden_act, theirs.text_config.hidden_act),
        (ours.projector.hidden_act, theirs.projector_hidden_act),
    ):
        np.testing.assert_allclose(ACTIVATIONS[mine](jnp.asarray(x)), ACT2FN[act](torch.tensor(x)), atol=2e-6)


@pytest.mark.parametrize("name", PARTIAL)
def test_ids_and_pinpoints_equal_transformers(name):
    ours, theirs = parse_config(PARTIAL[name]), _theirs(PARTIAL[name])
    generation = hf.GenerationConfig.from_model_config(theirs)
    eos = generation.eos_token_id
    assert ours.eos_ids == (() if eos is None else tuple(eos) if isinstance(eos, list) else (eos,))
    assert ours.bos_id == generation.bos_token_id
    assert ours.pad_id == generation.pad_token_id
    assert ours.image_token_id == theirs.image_token_index
    points = getattr(theirs, "image_grid_pinpoints", None)
    assert ours.grid_pinpoints == (None if points is None else tuple(map(tuple, points)))


def test_ids_of_the_generation_config_win():
    config = {"model_type": "llava", "text_config": {"eos_token_id": 7}}
    ours = parse_config(config, {"eos_token_id": [1, 2], "bos_token_id": 4, "pad_token_id": None})
    assert (ours.eos_ids, ours.bos_id, ours.pad_id) == ((1, 2), 4, None)


ROPES = {
    "old theta": {"rope_theta": 5e5},
    "old linear": {"rope_scaling": {"type": "linear", "factor": 2.5}},
    "theta inside wins": {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 3e4}},
    "scaling wins over parameters": {
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "linear", "factor": 4.0},
    },
    "null scaling": {"rope_scaling": None, "rope_theta": 2e4},
    "rope_type wins over type": {"rope_scaling": {"type": "default", "rope_type": "linear", "factor": 3.0}},
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_theta": 2e4},
    "llama3": {
        "rope_theta": 5e5,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "llama3, original context outside": {
        "original_max_position_embeddings": 48,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "yarn": {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
    "yarn, original context missing": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    "yarn, every key": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 3e4,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 20.0,
            "beta_slow": 2.0,
            "mscale": 0.8,
            "mscale_all_dim": 1.2,
            "truncate": False,
        }
    },
    "yarn, attention factor": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.7}},
    "yarn, one scale alone": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "mscale": 0.5}},
}


@pytest.mark.parametrize("name", ROPES)
@pytest.mark.parametrize("length", [40, 300])
def test_rotation_equals_transformers(name, length):
    text = {"model_type": "llama", "hidden_size": 96, "num_attention_heads": 4, "max_position_embeddings": 256}
    config = {"model_type": "llava", "text_config": text | ROPES[name]}
    decoder = parse_config(config).vlm.decoder
    rotary = LlamaRotaryEmbedding(_theirs(config).text_config)
    cos, sin = rotary(torch.zeros(1), torch.arange(length)[None])
    mine = rotary_angles(decoder.rope, decoder.head_dim, jnp.arange(length)[None])
    for ours, theirs in zip(mine, (cos, sin), strict=True):
        np.testing.assert_allclose(ours, theirs[..., : decoder.head_dim // 2], atol=1e-4)


BROKEN = {
    "model type": ({"model_type": "blip"}, "model_type.*llava, llava_next.*'blip'"),
    "no model type": ({"model_type": None}, "model_type"),
    "original layout": ({"mm_vision_tower": "openai/clip"}, "original LLaVA code"),
    "quantized": ({"quantization_config": {"bits": 4}}, "quantization_config.*bits"),
    "text quantized": ({"text_config": {"quantization_config": {"bits": 4}}}, "text_config.quantization_config"),
    "text type": (
        {"text_config": {"model_type": "mixtral"}},
        "text_config.model_type.*'mixtral'.*llama, mistral",
    ),
    "vision type": (
        {"vision_config": {"model_type": "dinov2"}},
        "vision_config.model_type.*'dinov2'.*clip_vision",
    ),
    "part is no object": ({"text_config": "llama"}, "text_config: expected an object, got 'llama'"),
    "activation": ({"text_config": {"hidden_act": "relu6"}}, "text_config.hidden_act.*'relu6'.*silu"),
    "projector activation": ({"projector_hidden_act": "mish"}, "projector_hidden_act.*'mish'"),
    "size is a string": ({"text_config": {"hidden_size": "4096"}}, "text_config.hidden_size.*integer.*'4096'"),
    "size is zero": ({"vision_config": {"patch_size": 0}}, "vision_config.patch_size.*at least 1.*0"),
    "size is a flag": ({"text_config": {"vocab_size": True}}, "vocab_size.*True"),
    "eps": ({"text_config": {"rms_norm_eps": 0}}, "rms_norm_eps.*positive"),
    "flag is a number": ({"multimodal_projector_bias": 1}, "multimodal_projector_bias.*true or false.*1"),
    "oblong tower": ({"vision_config": {"image_size": [336, 224]}}, "image_size.*two equal.*336, 224"),
    "channels": ({"vision_config": {"num_channels": 1}}, "num_channels.*1.*3"),
    "patch beyond image": ({"vision_config": {"image_size": 8, "patch_size": 14}}, "patch of 14.*image of 8"),
    "vision heads": ({"vision_config": {"num_attention_heads": 7}}, "7 heads do not divide.*768"),
    "text heads": ({"text_config": {"num_attention_heads": 7}}, "7 heads do not divide.*4096"),
    "kv heads": ({"text_config": {"num_key_value_heads": 5}}, "num_key_value_heads.*5.*32"),
    "odd head": ({"text_config": {"head_dim": 5}}, "head_dim.*even.*5"),
    "feature layer": ({"vision_feature_layer": 25}, "vision_feature_layer.*24 blocks.*-25 to 24.*25"),
    "feature layers": ({"vision_feature_layer": []}, "vision_feature_layer"),
    "strategy": ({"vision_feature_select_strategy": "cls"}, "select_strategy.*'cls'.*default, patch, full, cls_patch"),
    "no class token": ({"vision_config": {"model_type": "siglip_vision_model"}}, "has none.*full"),
    "class token in tiles": (
        {"model_type": "llava_next", "vision_feature_select_strategy": "full"},
        "llava_next.*class token",
    ),
    "pinpoints": ({"model_type": "llava_next", "image_grid_pinpoints": [[336, 500]]}, "multiples of the tile of 336"),
    "pinpoints empty": ({"model_type": "llava_next", "image_grid_pinpoints": []}, "image_grid_pinpoints"),
    "newline off": ({"model_type": "llava_next", "use_image_newline_parameter": False}, "use_image_newline_parameter"),
    "two placeholders": ({"image_token_index": 3, "image_token_id": 4}, "image_token_id.*same id.*3.*4"),
    "eos": ({"text_config": {"eos_token_id": "</s>"}}, "eos_token_id.*'</s>'"),
    "bias of mistral": ({"text_config": {"model_type": "mistral", "attention_bias": True}}, "attention_bias.*True"),
    "layer types": (
        {"text_config": {"model_type": "qwen2", "num_hidden_layers": 1, "layer_types": ["linear_attention"]}},
        "layer_types.*linear_attention.*full_attention, sliding_attention",
    ),
    "layer types without window": (
        {"text_config": {"model_type": "qwen2", "num_hidden_layers": 1, "layer_types": ["sliding_attention"]}},
        "sliding_window",
    ),
    "window of llama": ({"text_config": {"sliding_window": 5}}, "sliding_window.*5"),
    "longrope": ({"text_config": {"rope_scaling": {"type": "longrope"}}}, "rope_scaling.type.*'longrope'.*llama3"),
    "rope key": (
        {"text_config": {"rope_scaling": {"type": "linear", "factor": 2.0, "mrope_section": [1]}}},
        "rope_scaling.mrope_section.*linear",
    ),
    "rope factor": ({"text_config": {"rope_scaling": {"type": "linear"}}}, "rope_scaling.factor.*linear"),
    "llama3 without bounds": (
        {"text_config": {"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}},
        "rope_parameters.low_freq_factor.*llama3",
    ),
    "partial rotation": ({"text_config": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor.*0.5"),
    "partial rotation inside": (
        {"text_config": {"rope_parameters": {"partial_rotary_factor": 0.5}}},
        "rope_parameters.partial_rotary_factor.*0.5",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_unsupported_value_is_named(name):
    change, message = BROKEN[name]
    with pytest.raises(ConfigError, match=message):
        parse_config({"model_type": "llava"} | change)


def test_config_is_hashable_and_names_the_architecture():
    config = parse_config(PUBLISHED["llava-v1.6-mistral-7b"])
    assert isinstance(config, ModelConfig)
    assert hash(config) == hash(parse_config(PUBLISHED["llava-v1.6-mistral-7b"]))
    assert config.architecture == "LLaVA-NeXT (CLIP + Mistral)"
    assert config.context_length == 32768
