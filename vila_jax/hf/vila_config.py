"""VILA's `config.json` -> `ModelConfig`: the one folder of v1, and the three folders of VILA1.5 and NVILA.

A root config of three folders names its parts under `llm_cfg`, `vision_tower_cfg` and `mm_projector_cfg`; v1 puts the
keys of the whole between those of the decoder, and its tower under `vision_config`. Keys that a generation did not know
yet are absent and mean what its code did. Paths inside (`_name_or_path`, `resume_path`) are training history, and never
read.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from vila_jax.errors import ConfigError
from vila_jax.hf.model_config import (
    IMAGE_PLACEHOLDER,
    Era,
    Layout,
    ModelConfig,
    feature_layers,
    first_id,
    scorer_width,
    token_ids,
)
from vila_jax.hf.section import Section
from vila_jax.hf.text_config import decoder_defaults, parse_text
from vila_jax.hf.vila_encoders import POOLING_VIDEO, check_image_encoder, parse_video
from vila_jax.hf.vila_pictures import parse_pictures
from vila_jax.hf.vision_config import LLAVA_TOWER, TOWER_NAMES, VILA_TOWERS, parse_vision
from vila_jax.nn.config import DecoderConfig, ProjectorConfig, RopeConfig, VisionConfig, VLMConfig
from vila_jax.nn.projector_types import projector_config
from vila_jax.vision.pooling import VideoConfig
from vila_jax.vision.vila_config import VilaPictures

CONFIG_KEYS = {"llm": "llm_cfg", "vision_tower": "vision_tower_cfg", "mm_projector": "mm_projector_cfg"}
"""Folder of a part -> the key of its config in the root config."""

CLIP_336 = "openai/clip-vit-large-patch14-336"
"""The tower of every published VILA v1."""

_DISPLAY = {"v1": "VILA", "vila1.5": "VILA1.5", "nvila": "NVILA"}
_FEATURES = {"patch": False, "cls_patch": True}  # -> keeps the class token
_BEFORE_NVILA = ("identity", "linear", "mlp_downsample")  # and mlpNx_gelu


@dataclasses.dataclass(frozen=True)
class _Parts:
    """The sections of a VILA config, whatever its layout."""

    top: Section
    llm: Section
    tower: Section
    projector: str


def vila_layout(config: Mapping[str, Any]) -> Layout | None:
    """The layout of a VILA config, None if it is not one."""
    if any(key in config for key in CONFIG_KEYS.values()):
        return "folders"
    has_tower = "mm_vision_tower" in config or "mm_projector_type" in config
    return "v1" if has_tower and "intermediate_size" in config else None


def parse_vila(
    config: Mapping[str, Any],
    layout: Layout,
    generation: Mapping[str, Any] | None,
    preprocessor: Mapping[str, Any] | None,
    era: str | None,
) -> ModelConfig:
    """Reads a VILA config; the arguments are those of `vila_jax.hf.config.parse_config`.

    Raises:
      ConfigError: a value that is missing, malformed or not supported, or parts that do not fit each other.
    """
    parts = _one_folder(config) if layout == "v1" else _three_folders(config)
    top = parts.top
    _refuse_unsupported(top)
    native = parse_vision(parts.tower, VILA_TOWERS)
    vision, resize = _at_resolution(top, native)
    decoder = parse_text(parts.llm, parts.llm.flag("tie_word_embeddings", False))
    length, decoder = _context(parts, decoder)
    pictures = parse_pictures(top, vision, native.image_size, preprocessor)
    scales = max(len(pictures.scales), 1)
    _check_widths(parts, vision, decoder, scales)
    projector = projector_config(parts.projector, vision.hidden_size * scales, decoder.hidden_size)
    pictures = dataclasses.replace(pictures, window=projector.window)
    video = parse_video(top, pictures.cells)
    shown, why = _shown_era(parts, layout, video)
    settled, reason = _settle_era(era, shown, why)
    keep_class_token = _keep_class_token(top, vision, projector, pictures)
    _check_pooling(top, video, settled, keep_class_token)
    family, ids = decoder_defaults(parts.llm)
    sources = (Section(generation or {}, "generation_config.json"), parts.llm, Section(ids, ""))
    return ModelConfig(
        vlm=VLMConfig(
            vision=vision,
            projector=projector,
            decoder=decoder,
            feature_layers=feature_layers(top, "mm_vision_select_layer", vision.num_layers, several=False),
            keep_class_token=keep_class_token,
            num_scales=scales,
            scorer_width=scorer_width(top),
        ),
        model_type="vila",
        architecture=f"{_DISPLAY[shown]} ({TOWER_NAMES[vision.kind]} + {family})",
        image_token_id=IMAGE_PLACEHOLDER,
        grid_pinpoints=None,
        eos_ids=token_ids(sources, "eos_token_id"),
        bos_id=first_id(sources, "bos_token_id"),
        pad_id=first_id(sources, "pad_token_id"),
        context_length=length,
        layout=layout,
        era=settled,
        era_reason=reason,
        pictures=dataclasses.replace(pictures, column_major=settled != "nvila" and parts.projector == "mlp_downsample"),
        video=video,
        template=top.text("chat_template"),
        position_resize=resize,
    )


def _one_folder(config: Mapping[str, Any]) -> _Parts:
    top = Section(config, "config.json")
    name = str(config.get("model_type", "llava_llama"))
    family = "llama" if name == "llava" else name.removeprefix("llava_")
    tower = top.section("vision_config")
    if not tower.values:
        if config.get("mm_vision_tower") != CLIP_336:
            raise top.error("mm_vision_tower", f"the tensors of the tower in this folder, or {CLIP_336}")
        tower = Section(LLAVA_TOWER, "config.json: mm_vision_tower")
    llm = Section({**config, "model_type": family}, "config.json")
    return _Parts(top, llm, tower, top.text("mm_projector_type") or "linear")


def _three_folders(config: Mapping[str, Any]) -> _Parts:
    top = Section(config, "config.json")
    for folder, key in CONFIG_KEYS.items():
        if not isinstance(config.get(key), Mapping):
            raise top.error(key, f"the config of the part, as in {folder}/config.json")
    llm, tower, projector = (Section(config[key], f"{folder}/config.json") for folder, key in CONFIG_KEYS.items())
    kind = projector.text("mm_projector_type")
    if kind is None:
        raise projector.error("mm_projector_type", "the name of a projector")
    if "model_type" not in tower.values or "model_type" not in llm.values:
        raise (tower if "model_type" not in tower.values else llm).error("model_type", "the type of this part")
    return _Parts(top, llm, tower, kind)


def _refuse_unsupported(top: Section) -> None:
    """Values that change the computation in ways that are not built."""
    top.fixed("quantization_config")
    for key in ("mm_use_im_start_end", "mm_use_im_patch_token", "ps3"):
        top.fixed(key, False)
    top.fixed("look_close_mode")
    top.fixed("mm_patch_merge_type", "flat")
    check_image_encoder(top)


def _at_resolution(top: Section, vision: VisionConfig) -> tuple[VisionConfig, Literal["linear", "bicubic"] | None]:
    """The tower at the size of its tiles, and the rule by which its positions are resized should theirs differ."""
    if top.get("vision_resolution") in (None, -1, vision.image_size):
        return vision, "bicubic" if vision.kind == "intern" else None
    size = top.integer("vision_resolution", vision.image_size, minimum=vision.patch_size)
    top.choice("interpolate_mode", "linear", {"linear": "linear"})
    if vision.has_class_token:
        raise top.error("vision_resolution", "-1: only the positions of a SigLIP tower are resized by this key")
    return dataclasses.replace(vision, image_size=size), "linear"


def _context(parts: _Parts, decoder: DecoderConfig) -> tuple[int, DecoderConfig]:
    """The context that the model was trained for; a decoder of a shorter one is stretched by a whole factor."""
    for section, key in (
        (parts.llm, "model_max_length"),
        (parts.top, "model_max_length"),
        (parts.top, "tokenizer_model_max_length"),
    ):
        if section.get(key) is not None:
            length = section.integer(key, decoder.max_position)
            break
    else:
        return decoder.max_position, decoder
    if length <= decoder.max_position:
        return length, decoder
    factor = float(math.ceil(length / decoder.max_position))
    rope = RopeConfig(decoder.rope.theta, "linear", factor, original_max_position=decoder.max_position)
    return length, dataclasses.replace(decoder, rope=rope)


def _settle_era(wanted: str | None, shown: Era, why: str) -> tuple[Era, str]:
    """The era to use, and why: the one that is asked for, or else what the checkpoint shows."""
    if wanted is None or wanted == shown:
        return shown, why
    for era in get_args(Era):
        if era == wanted:
            return era, f"asked for; the checkpoint itself looks like {shown}: {why}"
    raise ConfigError(f"unknown era {wanted!r}", where="era", fix=f"Supported: {', '.join(get_args(Era))}.")


def _check_pooling(top: Section, video: VideoConfig, era: Era, keep_class_token: bool) -> None:
    """Refuses TSP where the reference never had it."""
    if video.tsp is None:
        return
    if era != "nvila":
        raise ConfigError(
            f"got {era!r}, but this checkpoint pools its videos ({POOLING_VIDEO}), which none did before NVILA",
            where="era",
            fix="Leave the era to be found out, or correct `video_encoder` in config.json.",
        )
    if keep_class_token:
        raise top.error("mm_vision_select_feature", "'patch': a class token has no place among pooled frames")


def _shown_era(parts: _Parts, layout: Layout, video: VideoConfig) -> tuple[Era, str]:
    """The era that a checkpoint shows, and by what.

    `image_encoder` and other keys that today's code adds whenever it saves show nothing: what a model was trained with
    shows in its choices. A Llama behind `mlp_downsample` without a chat template is VILA1.5, whoever saved it last.
    """
    if layout == "v1":
        return "v1", "one folder holds all parts"
    mode, template, kind = (parts.top.get("image_aspect_ratio"), parts.top.get("chat_template"), parts.projector)
    is_old = kind in _BEFORE_NVILA or kind.endswith("x_gelu")
    signs = {
        f"image_aspect_ratio is {mode}": mode in ("dynamic", "dynamic_s2"),
        f"the projector is {kind}": not is_old,
        f"the language model is {parts.llm.get('model_type')}": parts.llm.get("model_type") == "qwen2",
        f"chat_template is {template}": template is not None,
        "videos are pooled": video.tsp is not None,
    }
    found = [sign for sign, holds in signs.items() if holds]
    if found:
        return "nvila", "; ".join(found)
    llm = parts.llm.get("model_type")
    return "vila1.5", f"{llm} behind {kind}, no chat_template, no dynamic tiles: nothing that came with NVILA"


def _check_widths(parts: _Parts, vision: VisionConfig, decoder: DecoderConfig, scales: int) -> None:
    """The root config repeats the widths of its parts."""
    features = vision.hidden_size * scales
    if parts.top.get("mm_hidden_size") not in (None, features):
        times = "" if scales == 1 else f" times {scales} scales"
        raise parts.top.error("mm_hidden_size", f"{features}, the tower's width of {vision.hidden_size}{times}")
    if parts.top.get("hidden_size") not in (None, decoder.hidden_size):
        raise parts.top.error("hidden_size", f"{decoder.hidden_size}, the width of the language model")


def _keep_class_token(top: Section, vision: VisionConfig, projector: ProjectorConfig, pictures: VilaPictures) -> bool:
    keep, key = top.choice("mm_vision_select_feature", "patch", _FEATURES), "mm_vision_select_feature"
    if not vision.has_class_token:
        if not keep:
            raise top.error(key, "'cls_patch': 'patch' drops the class token, and this tower has none")
        return False
    if keep and (projector.window > 1 or pictures.mode not in ("resize", "pad", "default")):
        raise top.error(key, "'patch': a class token has no place among merged windows, tiles or scales")
    return keep
