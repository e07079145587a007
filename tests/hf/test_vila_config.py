"""VILA's config, key by key: what each means, what its absence means, and what is refused."""

import copy
import json
import re

import pytest

from tests.published import LLAVA_15_7B, VILA
from vila_jax.errors import ConfigError
from vila_jax.hf.config import parse_config

V1, VILA15, S2 = VILA["VILA-7b"], VILA["VILA1.5-3b"], VILA["VILA1.5-3b-s2"]
INTERN, LITE, NVILA = VILA["VILA1.5-40b"], VILA["NVILA-Lite-8B"], VILA["NVILA-8B"]


def changed(config: dict, **values) -> dict:
    """Sets keys of the root config, or with `PART__KEY` of a part's; Ellipsis removes one."""
    config = copy.deepcopy(config)
    for name, value in values.items():
        part, _, key = name.partition("__") if "__" in name else ("", "", name)
        section = config[f"{part}_cfg"] if part else config
        section[key] = value
        if value is ...:
            del section[key]
    return config


def vlm(config: dict, **values):
    return parse_config(changed(config, **values)).vlm


def test_every_size_of_the_parts_arrives():
    built = vlm(INTERN)
    vision, decoder = built.vision, built.decoder
    assert (vision.kind, vision.hidden_size, vision.num_layers, vision.num_heads) == ("intern", 3200, 45, 25)
    assert (vision.image_size, vision.patch_size, vision.hidden_act, vision.norm_eps) == (448, 14, "gelu", 1e-6)
    assert (vision.qk_norm, vision.qkv_bias) == (True, False)
    assert (decoder.hidden_size, decoder.num_kv_heads, decoder.rope.theta, decoder.vocab_size) == (7168, 8, 5e6, 64000)
    assert built.feature_layers == (45,)
    assert not built.keep_class_token
    other = vlm(INTERN, vision_tower__qk_normalization=False, vision_tower__qkv_bias=True).vision
    assert (other.qk_norm, other.qkv_bias) == (False, True)
    assert vlm(NVILA).decoder.qkv_bias
    assert vlm(LITE).projector.window == 3
    assert vlm(V1).vision == vlm(V1, vision_config={"model_type": "clip_vision_model"} | CLIP).vision


CLIP = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
CLIP |= {"image_size": 336, "patch_size": 14}


def test_keys_of_later_generations_may_be_absent():
    late = ["s2", "s2_scales", "s2_max_split_size", "vision_resolution", "interpolate_mode", "model_dtype"]
    old = {key: value for key, value in VILA15.items() if key not in late}
    assert parse_config(old) == parse_config(VILA15)
    null = VILA15 | dict.fromkeys([*late, "chat_template", "image_encoder", "dynamic_s2", "min_tiles", "max_tiles"])
    assert parse_config(null) == parse_config(VILA15)


def test_paths_are_not_looked_at():
    config = changed(VILA15, _name_or_path="/etc", resume_path="../..", llm___name_or_path="/etc/passwd")
    assert parse_config(config) == parse_config(VILA15)


@pytest.mark.parametrize("model_type", ["vila", "llava", "llava_llama", "llava_qwen2"])
def test_model_type_of_three_folders_means_nothing(model_type):
    assert parse_config(changed(VILA15, model_type=model_type)) == parse_config(VILA15)


def test_features():
    assert vlm(VILA15).feature_layers == (26,)
    assert vlm(VILA15, mm_vision_select_layer=3).feature_layers == (3,)
    assert not vlm(VILA15).keep_class_token  # cls_patch of a tower without class token
    assert vlm(V1, mm_vision_select_feature="cls_patch").keep_class_token
    assert vlm(V1, mm_vision_select_feature="cls_patch").tokens_per_tile == 577


ERAS = {
    "llama behind mlp_downsample": (VILA15, {}, "vila1.5", "llama behind mlp_downsample"),
    "saved again by the newest code": (
        VILA15,
        {"image_encoder": '{"_target_": "llava.model.encoders.BasicImageEncoder"}', "chat_template": None},
        "vila1.5",
        "llama",
    ),
    "dynamic": (VILA15, {"image_aspect_ratio": "dynamic"}, "nvila", "image_aspect_ratio is dynamic$"),
    "newer projector": (
        VILA15,
        {"mm_projector__mm_projector_type": "mlp_downsample_2x2_fix"},
        "nvila",
        "projector is mlp_downsample_2x2_fix",
    ),
    "qwen": (LITE, {"image_aspect_ratio": "resize", "chat_template": None}, "nvila", "3x3_fix; .*qwen2$"),
    "template": (VILA15, {"chat_template": "llama_3"}, "nvila", "chat_template is llama_3"),
    "one folder": (V1, {}, "v1", "one folder"),
}


@pytest.mark.parametrize("name", ERAS)
def test_era_is_shown(name):
    config, values, era, reason = ERAS[name]
    parsed = parse_config(changed(config, **values))
    assert parsed.era == era
    assert re.search(reason, parsed.era_reason)


ONE_TILE = {"dynamic_s2": False, "image_aspect_ratio": "resize", "mm_hidden_size": 1152}


def test_era_can_be_chosen():
    """It decides the order of merged tokens and the prompts, and nothing else."""
    shown = parse_config(VILA15)
    chosen = parse_config(VILA15, era="nvila")
    assert (shown.era, shown.pictures.column_major) == ("vila1.5", True)
    assert (chosen.era, chosen.pictures.column_major) == ("nvila", False)
    assert chosen.era_reason.startswith("asked for; the checkpoint itself looks like vila1.5: llama behind")
    assert chosen.vlm == shown.vlm
    assert chosen.architecture == shown.architecture == "VILA1.5 (SigLIP + Llama)"
    assert parse_config(VILA15, era="vila1.5") == shown
    assert parse_config(changed(NVILA, **ONE_TILE), era="vila1.5").pictures.column_major
    assert not parse_config(LITE, era="vila1.5").pictures.column_major  # 3x3 was row-major from the first


def test_era_is_vilas():
    with pytest.raises(ConfigError, match=r"era.*no column-major order"):
        parse_config(NVILA, era="vila1.5")
    with pytest.raises(ConfigError, match=r"era: unknown era 'v2'\. Supported: v1, vila1.5, nvila"):
        parse_config(VILA15, era="v2")
    with pytest.raises(ConfigError, match="era: got 'nvila', but this is no VILA checkpoint"):
        parse_config(LLAVA_15_7B, era="nvila")


PICTURES = {
    "v1": (
        V1,
        {},
        {"mode": "pad", "tile_size": 336, "side": 24, "window": 1, "mean": (0.48145466, 0.4578275, 0.40821073)},
    ),
    "square": (V1, {"image_aspect_ratio": "square"}, {"mode": "default", "center_crop": True}),
    "square, siglip": (VILA15, {"image_aspect_ratio": "square"}, {"mode": "default", "center_crop": False}),
    "no mode": (V1, {"image_aspect_ratio": ...}, {"mode": "default"}),
    "vila1.5": (VILA15, {}, {"mode": "resize", "tile_size": 384, "side": 27, "window": 2, "mean": (0.5, 0.5, 0.5)}),
    "intern": (INTERN, {}, {"tile_size": 448, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}),
    "s2": (S2, {}, {"mode": "s2", "scales": (384, 768), "resize_to": 0}),
    "s2 as a list": (S2, {"s2_scales": [768, 384]}, {"scales": (384, 768)}),
    "s2 at the second scale": (S2, {"s2_resize_output_to_scale_idx": 1}, {"resize_to": 1}),
    "dynamic": (LITE, {"min_tiles": 2, "max_tiles": 7}, {"mode": "dynamic", "min_tiles": 2, "max_tiles": 7}),
    "dynamic s2": (NVILA, {}, {"mode": "dynamic_s2", "scales": (448, 896, 1344), "resize_to": 2, "max_tiles": 12}),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name):
    config, values, expected = PICTURES[name]
    pictures = parse_config(changed(config, **values)).pictures
    assert {key: getattr(pictures, key) for key in expected} == expected
    assert pictures.resample == 3


def test_numbers_of_scales():
    assert [vlm(config).num_scales for config in (VILA15, S2, LITE, NVILA)] == [1, 2, 1, 3]


def test_the_processor_wins():
    processor = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "size": {"height": 384, "width": 384}}
    pictures = parse_config(VILA15, preprocessor=processor).pictures
    assert (pictures.mean, pictures.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    stub = {"image_processor_type": "CLIPImageProcessor"}
    assert parse_config(INTERN, preprocessor=stub) == parse_config(INTERN)
    assert parse_config(V1, preprocessor={"resample": 2}).pictures.resample == 2
    assert parse_config(VILA15, preprocessor={"resample": 2}).pictures.resample == 3  # resized before the processor
    assert parse_config(S2, preprocessor={"size": {"height": 768, "width": 768}}) == parse_config(S2)


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        ({"size": {"height": 336, "width": 336}}, "size: pictures are prepared at .*336.*tower takes 384"),
        ({"do_normalize": False}, "do_normalize.*False"),
        ({"rescale_factor": 1.0}, "rescale_factor.*1 / 255"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std.*three numbers"),
        ({"image_mean": 0.5}, "image_mean.*three numbers"),
    ],
)
def test_processor_that_does_not_fit(processor, message):
    with pytest.raises(ConfigError, match=r"preprocessor_config.json: " + message):
        parse_config(VILA15, preprocessor=processor)


def test_resolution():
    larger = parse_config(changed(VILA15, vision_resolution=448))
    assert (larger.vlm.vision.image_size, larger.position_resize) == (448, "linear")
    assert (larger.pictures.tile_size, larger.vlm.tokens_per_tile) == (448, 256)
    assert parse_config(changed(VILA15, vision_resolution=384)) == parse_config(VILA15)
    assert parse_config(VILA15).position_resize is None
    assert parse_config(INTERN).position_resize == "bicubic"


def test_context():
    shorter = parse_config(changed(NVILA, llm__model_max_length=2048))
    assert (shorter.context_length, shorter.vlm.decoder.rope.scaling) == (2048, "default")
    longer = parse_config(changed(VILA15, llm__model_max_length=10_000))
    rope = longer.vlm.decoder.rope
    assert (longer.context_length, rope.scaling, rope.factor, rope.theta) == (10_000, "linear", 3.0, 10_000.0)
    assert parse_config(changed(VILA15, llm__model_max_length=...)).context_length == 4096
    root = changed(VILA15, llm__model_max_length=..., tokenizer_model_max_length=1000)
    assert parse_config(root).context_length == 1000
    assert parse_config(V1 | {"tokenizer_model_max_length": 8192}).vlm.decoder.rope.factor == 2.0


def test_token_ids():
    config = parse_config(NVILA)
    assert (config.eos_ids, config.bos_id, config.image_token_id) == ((151645,), 151643, -200)
    assert parse_config(NVILA, {"eos_token_id": [1, 2]}).eos_ids == (1, 2)
    assert config.template == "qwen2"
    assert parse_config(VILA15).template is None


BROKEN = {
    "projector": (
        VILA15,
        {"mm_projector__mm_projector_type": "qformer"},
        "mm_projector_type.*'qformer'.*mlp_downsample",
    ),
    "no projector": (VILA15, {"mm_projector__mm_projector_type": None}, "mm_projector_type.*name of a projector"),
    "tower": (
        VILA15,
        {"vision_tower__model_type": "radio"},
        "vision_tower/config.json: model_type.*'radio'.*intern_vit_6b",
    ),
    "no tower type": (VILA15, {"vision_tower__model_type": ...}, "vision_tower/config.json: model_type.*nothing"),
    "llm": (VILA15, {"llm__model_type": "mixtral"}, "llm/config.json: model_type.*'mixtral'.*llama, mistral, qwen2"),
    "llm in 8 bits": (VILA15, {"llm__model_type": "fp8_llama"}, "llm/config.json: model_type.*'fp8_llama'"),
    "llm of v1": (V1, {"model_type": "llava_mpt"}, "model_type.*'mpt'.*llama"),
    "part is a name": (VILA15, {"llm_cfg": "lmsys/vicuna"}, "llm_cfg.*llm/config.json.*'lmsys/vicuna'"),
    "part is absent": (VILA15, {"mm_projector_cfg": ...}, "mm_projector_cfg.*mm_projector/config.json.*nothing"),
    "quantised": (VILA15, {"quantization_config": {"bits": 4}}, "quantization_config.*bits"),
    "llm quantised": (VILA15, {"llm__quantization_config": {"bits": 4}}, "llm/config.json: quantization_config.*bits"),
    "feature width": (VILA15, {"mm_hidden_size": 1024}, "mm_hidden_size.*1152, the tower's width.*1024"),
    "feature width of scales": (S2, {"mm_hidden_size": 1152}, "mm_hidden_size.*2304.*1152 times 2 scales"),
    "width": (VILA15, {"hidden_size": 4096}, "hidden_size.*2560, the width of the language model.*4096"),
    "identity": (VILA15, {"mm_projector__mm_projector_type": "identity"}, "identity.*1152.*2560"),
    "start and end": (V1, {"mm_use_im_start_end": True}, "mm_use_im_start_end.*True"),
    "patch token": (VILA15, {"mm_use_im_patch_token": True}, "mm_use_im_patch_token.*True"),
    "ps3": (NVILA, {"ps3": True}, "ps3.*True"),
    "no scales": (S2, {"s2_scales": None}, "s2_scales.*multiples of the tower's 384"),
    "empty scales": (S2, {"s2_scales": ""}, "s2_scales.*multiples"),
    "odd scales": (S2, {"s2_scales": "384,a"}, "s2_scales.*'384,a'"),
    "scales and split": (S2, {"s2_max_split_size": 336}, "s2_scales.*s2_max_split_size = 336"),
    "scales beside tiles": (LITE, {"s2": True, "s2_scales": "448,896"}, "image_aspect_ratio.*'resize'.*s2 is on"),
    "scale index": (NVILA, {"s2_resize_output_to_scale_idx": 3}, "scale_idx.*one of 3 scales"),
    "dynamic s2 half on": (NVILA, {"dynamic_s2": False}, "dynamic_s2.*true for.*'dynamic_s2'.*False"),
    "dynamic s2 without mode": (NVILA, {"image_aspect_ratio": "resize"}, "dynamic_s2.*false for.*'resize'.*True"),
    "dynamic s2 without scales": (NVILA, {"s2_scales": None}, "s2_scales"),
    "too few tiles": (NVILA, {"max_tiles": 8}, "max_tiles.*at least 9"),
    "tiles": (LITE, {"min_tiles": 5, "max_tiles": 4}, "max_tiles.*at least 5"),
    "mode": (VILA15, {"image_aspect_ratio": "anyres"}, "image_aspect_ratio.*'anyres'.*resize, pad"),
    "feature": (VILA15, {"mm_vision_select_feature": "patch"}, "mm_vision_select_feature.*has none"),
    "class token among windows": (INTERN, {"mm_vision_select_feature": "cls_patch"}, "select_feature.*merged windows"),
    "layer": (VILA15, {"mm_vision_select_layer": 28}, "mm_vision_select_layer.*27 blocks.*28"),
    "layers": (VILA15, {"mm_vision_select_layer": [-2, -1]}, "mm_vision_select_layer"),
    "resolution of clip": (
        VILA["VILA1.5-40b"],
        {"vision_tower_cfg": {"model_type": "clip_vision_model"}, "vision_resolution": 448, "mm_hidden_size": 768},
        "vision_resolution.*SigLIP",
    ),
    "resolution of intern": (INTERN, {"vision_resolution": 336}, "vision_resolution.*SigLIP.*336"),
    "interpolation": (
        VILA15,
        {"vision_resolution": 448, "interpolate_mode": "bicubic"},
        "interpolate_mode.*'bicubic'.*linear",
    ),
    "norm of intern": (INTERN, {"vision_tower__norm_type": "layer_norm"}, "norm_type.*'layer_norm'.*rms_norm"),
    "encoder": (NVILA, {"image_encoder": json.dumps({"_target_": "os.system"})}, "image_encoder._target_.*'os.system'"),
    "encoder's end": (NVILA, {"image_encoder": {"end_tokens": "<end>"}}, "image_encoder.end_tokens.*'<end>'"),
    "encoder without an end": (NVILA, {"image_encoder": {"end_tokens": None}}, "image_encoder.end_tokens.*None"),
    "encoder is no JSON": (NVILA, {"image_encoder": "Basic"}, "image_encoder.*expected JSON"),
    "template": (NVILA, {"chat_template": 3}, "chat_template.*a string.*3"),
    "tower of v1": (
        V1,
        {"mm_vision_tower": "/home/me/clip"},
        "mm_vision_tower.*openai/clip-vit-large.*'/home/me/clip'",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_unsupported_value_is_named(name):
    config, values, message = BROKEN[name]
    with pytest.raises(ConfigError, match=message):
        parse_config(changed(config, **values))


@pytest.mark.parametrize("name", VILA)
def test_hashable(name):
    assert hash(parse_config(VILA[name])) == hash(parse_config(VILA[name]))
