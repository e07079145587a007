"""What every layout says about the parts of a model, in one form: from any of them, to any of them."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from vila_jax.errors import ConfigError
from vila_jax.hf.checkpoint import Checkpoint
from vila_jax.hf.vila_config import CLIP_336, CONFIG_KEYS
from vila_jax.hf.vision_config import LLAVA_TOWER
from vila_jax.nn.config import DecoderConfig
from vila_jax.vision.preprocess import PreprocessConfig
from vila_jax.vision.vila_config import VilaPictures

JSON = dict[str, Any]

_OF_THE_WHOLE = re.compile(  # keys of VILA v1 that are not the decoder's
    r"mm_|image_|video_|vision_|tune_|freeze_|unfreeze_|use_mm_|tokenizer_|s2|dynamic_|_name_or_path|chat_template|fps$"
    r"|num_(video|time|look|token)|token_scorer$|(min|max)_tiles|interpolate_mode|model_dtype|time_token|soft_ce|look_close|ps3"
    r"|high_res_|top_down_|resume_path|conversation_style$"
)
_HISTORY = ("_name_or_path", "resume_path", "_attn_implementation_autoset", "transformers_version")
_DECODER_CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}
_TOWER_CLASSES = {"clip_vision_model": "CLIPVisionModel", "siglip_vision_model": "SiglipVisionModel"}


@dataclasses.dataclass(frozen=True)
class Parts:
    """The configs of the parts.

    Attributes:
      llm: of the decoder, with its `model_type`.
      tower: of the vision tower, with its `model_type`.
      projector: VILA's name of it.
      whole: VILA's keys of the root config.
      preprocessor: contents of `preprocessor_config.json` as VILA's tower has it.
    """

    llm: JSON
    tower: JSON
    projector: str
    whole: JSON
    preprocessor: JSON


def read_parts(checkpoint: Checkpoint) -> Parts:
    """The parts of a checkpoint of any layout.

    Raises:
      ConfigError: a LLaVA that VILA's configs cannot express.
    """
    raw, config = checkpoint.raw_config, checkpoint.config
    if config.layout == "llava":
        return _from_llava(checkpoint)
    preprocessor = dict(checkpoint.preprocessor)
    if config.layout == "v1":
        llm = {key: value for key, value in raw.items() if not _OF_THE_WHOLE.match(key)}
        family = str(raw.get("model_type", "llama"))
        llm["model_type"] = "llama" if family == "llava" else family.removeprefix("llava_")
        whole = {key: value for key, value in raw.items() if key not in llm and key != "vision_config"}
        projector = raw.get("mm_projector_type") or "linear"
        tower = dict(raw.get("vision_config") or {"model_type": "clip_vision_model", **LLAVA_TOWER})
        if "image_mean" not in preprocessor and config.pictures is not None:
            preprocessor = preprocessor_config(config.pictures)
    else:
        llm, tower, projector_cfg = (dict(raw[key]) for key in CONFIG_KEYS.values())
        whole = {key: value for key, value in raw.items() if key not in CONFIG_KEYS.values()}
        projector = projector_cfg["mm_projector_type"]
    llm = _explicit(llm, config.vlm.decoder)
    return Parts(llm, tower, projector, _without(whole, *_HISTORY, "architectures", "model_type"), preprocessor)


def three_folders(parts: Parts) -> dict[str, JSON]:
    """The configs of the three folders and the root, by their file."""
    llm = {"architectures": [_DECODER_CLASSES[parts.llm["model_type"]]]} | _without(parts.llm, *_HISTORY)
    llm["architectures"] = [_DECODER_CLASSES[parts.llm["model_type"]]]
    if "tokenizer_model_max_length" in parts.whole:
        llm.setdefault("model_max_length", parts.whole["tokenizer_model_max_length"])
    tower = _without(parts.tower, *_HISTORY)
    tower.setdefault("architectures", [_TOWER_CLASSES.get(tower["model_type"], "InternVisionModel")])
    projector = {
        "architectures": ["MultimodalProjector"],
        "model_type": "v2l_projector",
        "mm_projector_type": parts.projector,
    }
    root = _without(parts.whole, "mm_projector_type", "mm_vision_tower", "tokenizer_model_max_length")
    root |= {"architectures": ["LlavaLlamaModel"], "model_type": "llava_llama", "hidden_size": llm["hidden_size"]}
    root |= {"llm_cfg": llm, "vision_tower_cfg": tower, "mm_projector_cfg": projector}
    return {
        "llm/config.json": llm,
        "vision_tower/config.json": tower,
        "vision_tower/preprocessor_config.json": parts.preprocessor,
        "mm_projector/config.json": projector,
        "config.json": root,
    }


def one_folder(parts: Parts) -> dict[str, JSON]:
    """The config of VILA v1 and the original LLaVA, by its file. The tower has none."""
    family = parts.llm["model_type"]
    tower = parts.tower
    is_clip_336 = all(tower.get(key) == value for key, value in LLAVA_TOWER.items())
    own_name = f"clip-vit-patch{tower.get('patch_size')}-{tower.get('image_size')}"
    config = _without(parts.llm, *_HISTORY) | parts.whole
    config |= {
        "architectures": [f"Llava{'Qwen2' if family == 'qwen2' else family.capitalize()}ForCausalLM"],
        "model_type": f"llava_{family}",
        "mm_projector_type": parts.projector,
        "mm_vision_tower": parts.whole.get("mm_vision_tower") or (CLIP_336 if is_clip_336 else own_name),
        "use_mm_proj": True,
    }
    return {"config.json": config, "preprocessor_config.json": parts.preprocessor}


def hf_llava(parts: Parts, decoder: DecoderConfig, pictures: VilaPictures, has_head: bool) -> dict[str, JSON]:
    """The config of Hugging Face's LLaVA and the files of its processor, but for the image token's id.

    Args:
      decoder: as it computes, with its context stretched if it is.
      pictures: of one tile.
      has_head: whether the tensors of SigLIP's pooling head are there.
    """
    text = _without(parts.llm, *_HISTORY, "architectures", "model_max_length")
    if decoder.rope.scaling == "linear":
        text.pop("rope_parameters", None)
        text |= {"rope_theta": decoder.rope.theta}
        text |= {"rope_scaling": {"rope_type": "linear", "type": "linear", "factor": decoder.rope.factor}}
    vision = _without(parts.tower, *_HISTORY, "architectures")
    has_class_token = vision["model_type"] == "clip_vision_model"
    if not has_class_token:
        vision["vision_use_head"] = has_head
    drops_it = has_class_token and parts.whole.get("mm_vision_select_feature", "patch") == "patch"
    strategy = "default" if drops_it else "full"
    extra = int(has_class_token)
    layer = parts.whole.get("mm_vision_select_layer", -2)
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_seq_length": pictures.cells**2 + extra - drops_it,
        "multimodal_projector_bias": True,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": layer,
        "vision_feature_select_strategy": strategy,
        "text_config": text,
        "vision_config": vision,
        "tie_word_embeddings": decoder.tie_embeddings,
    } | _scorer(parts.whole)
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "patch_size": vision["patch_size"],
        "num_additional_image_tokens": extra,
        "vision_feature_select_strategy": strategy,
    }
    picture_files = {"preprocessor_config.json": preprocessor_config(pictures), "processor_config.json": processor}
    return {"config.json": config} | picture_files


def _from_llava(checkpoint: Checkpoint) -> Parts:
    raw, config = checkpoint.raw_config, checkpoint.config
    vlm = config.vlm
    if vlm.has_newline:
        raise _no_place("the tiles and newlines of LLaVA-NeXT")
    if len(vlm.feature_layers) > 1:
        raise _no_place("features of several layers")
    if not vlm.projector.bias or vlm.projector.hidden_act != "gelu":
        raise _no_place("a projector without biases, or with another activation than the exact GELU")
    llm = dict(raw.get("text_config") or {})
    llm.setdefault("model_type", "llama")
    for key, ids in (("eos_token_id", config.eos_ids[:1]), ("bos_token_id", (config.bos_id,))):
        if llm.get(key) is None and ids and ids[0] is not None:
            llm[key] = ids[0]
    tower = raw.get("vision_config") or LLAVA_TOWER
    pictures = PreprocessConfig.from_hf(
        checkpoint.processor.get("image_processor") or checkpoint.preprocessor, model_type=config.model_type
    )
    whole = {
        "image_aspect_ratio": "pad" if pictures.pad_to_square else "square",
        "mm_vision_select_layer": vlm.feature_layers[0] - (vlm.vision.num_layers + 1),
        "mm_vision_select_feature": "patch" if vlm.vision.has_class_token and not vlm.keep_class_token else "cls_patch",
        "mm_hidden_size": vlm.vision.hidden_size,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
    } | _scorer(raw)
    return Parts(
        llm=_explicit(llm, vlm.decoder),
        tower={"model_type": "clip_vision_model", **tower},
        projector="mlp2x_gelu",
        whole=whole,
        preprocessor=_vila_preprocessor(pictures),
    )


def _scorer(config: Mapping[str, Any]) -> JSON:
    """The key of the token scorer, which is the same in all layouts, where there is one."""
    return {key: value for key, value in config.items() if key == "token_scorer"}


def _no_place(what: str) -> ConfigError:
    return ConfigError(f"the configs of VILA have no place for {what}", where="--to", fix="Export it with `--to hf`.")


def preprocessor_config(pictures: VilaPictures) -> JSON:
    """What transformers' processors need to make the same pixel values, for the modes of one tile."""
    square = {"height": pictures.tile_size, "width": pictures.tile_size}
    if pictures.mode == "pad" or pictures.center_crop:
        size: JSON = {"size": {"shortest_edge": pictures.tile_size}, "crop_size": square, "do_center_crop": True}
    else:
        size = {"size": square, "do_center_crop": False}
    name = "Siglip" if not size["do_center_crop"] else "Llava" if pictures.mode == "pad" else "CLIP"
    padding = {"do_pad": True} if pictures.mode == "pad" else {}
    values = _pixel_values(pictures.resample, pictures.mean, pictures.std)
    return {"image_processor_type": f"{name}ImageProcessor"} | size | padding | values


def _vila_preprocessor(config: PreprocessConfig) -> JSON:
    """What VILA's code needs beside `image_aspect_ratio` to make the pixel values of a LLaVA."""
    if config.size is None or config.rescale_factor is None or not config.do_normalize:
        raise _no_place("pictures that are not resized, rescaled and normalised")
    tile = config.tile_size
    edges = config.size if isinstance(config.size, tuple) else (tile, tile)
    crops = config.crop_size is not None or isinstance(config.size, int)
    if (config.size if isinstance(config.size, int) else edges) not in (tile, (tile, tile)):
        raise _no_place(f"pictures resized to {config.size} and cut to {tile} pixels")
    square = {"height": tile, "width": tile}
    size: JSON = {"size": {"shortest_edge": tile} if isinstance(config.size, int) else square}
    size |= {"crop_size": square, "do_center_crop": True} if crops else {"do_center_crop": False}
    values = _pixel_values(config.resample, config.mean, config.std) | {"rescale_factor": config.rescale_factor}
    return {"image_processor_type": f"{'CLIP' if crops else 'Siglip'}ImageProcessor"} | size | values


def _pixel_values(resample: int, mean: tuple[float, ...], std: tuple[float, ...]) -> JSON:
    return {
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": resample,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def _explicit(llm: Mapping[str, Any], decoder: DecoderConfig) -> JSON:
    """A decoder's config that leaves no size to the defaults of a class."""
    return dict(llm) | {
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.intermediate_size,
        "num_hidden_layers": decoder.num_layers,
        "num_attention_heads": decoder.num_heads,
        "num_key_value_heads": decoder.num_kv_heads,
        "max_position_embeddings": decoder.max_position,
        "rms_norm_eps": decoder.norm_eps,
        "tie_word_embeddings": decoder.tie_embeddings,
    }


def _without(values: Mapping[str, Any], *keys: str) -> JSON:
    return {key: value for key, value in values.items() if key not in keys}
