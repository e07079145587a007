"""The `config.json` of Hugging Face's LLaVA and LLaVA-NeXT -> `ModelConfig`.

Published configs leave out whatever equals the default of their transformers class, so those defaults are part of the
format; they are those of transformers 5.23. A value that this library does not support is a `ConfigError` that names
the key, the value and what is supported.
"""

from collections.abc import Mapping
from typing import Any

from vila_jax.errors import ConfigError
from vila_jax.hf.model_config import ModelConfig, feature_layers, first_id, scorer_width, token_ids
from vila_jax.hf.section import Section
from vila_jax.hf.text_config import decoder_defaults, parse_text
from vila_jax.hf.vision_config import ACTIVATIONS, LLAVA_TOWER, TOWER_NAMES, parse_vision
from vila_jax.nn.config import ProjectorConfig, VisionConfig, VLMConfig
from vila_jax.nn.rope import context_length

_DISPLAY = {"llava": "LLaVA-1.5", "llava_next": "LLaVA-NeXT"}
_STRATEGIES = {"default": False, "patch": False, "full": True, "cls_patch": True}  # -> keeps the class token
_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def parse_llava(config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> ModelConfig:
    """Reads a LLaVA-style config.

    Args:
      config: contents of `config.json`.
      generation: contents of `generation_config.json`, if there is one; its token ids win.

    Raises:
      ConfigError: a value that is missing, malformed or not supported.
    """
    top = Section(config, "config.json")
    model_type = _model_type(top)
    top.fixed("quantization_config")
    text = top.section("text_config")
    vision = parse_vision(_vision_section(top))
    decoder = parse_text(text, _tied(top, model_type))
    layers = feature_layers(top, "vision_feature_layer", vision.num_layers, several=True)
    vlm = VLMConfig(
        vision=vision,
        projector=ProjectorConfig(
            widths=(vision.hidden_size * len(layers), decoder.hidden_size, decoder.hidden_size),
            hidden_act=top.choice("projector_hidden_act", "gelu", ACTIVATIONS),
            bias=top.flag("multimodal_projector_bias", True),
        ),
        decoder=decoder,
        feature_layers=layers,
        keep_class_token=_keep_class_token(top, vision, model_type),
        has_newline=model_type == "llava_next",
        scorer_width=scorer_width(top),
    )
    language, ids = decoder_defaults(text)
    sources = (Section(generation or {}, "generation_config.json"), top, text, Section(ids, ""))
    return ModelConfig(
        vlm=vlm,
        model_type=model_type,
        architecture=f"{_DISPLAY[model_type]} ({TOWER_NAMES[vision.kind]} + {language})",
        image_token_id=_image_token_id(top),
        grid_pinpoints=_grid_pinpoints(top, vision.image_size) if model_type == "llava_next" else None,
        eos_ids=token_ids(sources, "eos_token_id"),
        bos_id=first_id(sources, "bos_token_id"),
        pad_id=first_id(sources, "pad_token_id"),
        context_length=context_length(decoder.rope, decoder.max_position),
    )


def _model_type(top: Section) -> str:
    model_type = top.get("model_type")
    if "mm_vision_tower" in top.values or "mm_projector_type" in top.values:
        raise ConfigError(
            "this is a checkpoint in the layout of the original LLaVA code",
            where=top.where("mm_vision_tower"),
            fix="Use its Hugging Face form (for LLaVA those under llava-hf/ on the Hub).",
        )
    if not isinstance(model_type, str) or model_type not in _DISPLAY:
        raise top.error("model_type", f"one of {', '.join(_DISPLAY)}", "This model is of another architecture.")
    return model_type


def _tied(top: Section, model_type: str) -> bool:
    """Whether the head is the embedding table: `llava_next` looks at the top level alone, as transformers does."""
    whole = top.flag("tie_word_embeddings", False)
    return whole or (model_type == "llava" and text_claims_tie(top.values))


def text_claims_tie(config: Mapping[str, Any]) -> bool:
    """Whether `text_config` says that the head is the embedding table."""
    return Section(config, "config.json").section("text_config").flag("tie_word_embeddings", False)


def _vision_section(top: Section) -> Section:
    """The tower's section; a config without one means `LLAVA_TOWER`, an empty one the defaults of its class."""
    section = top.section("vision_config")
    return Section(LLAVA_TOWER, section.name) if top.get("vision_config") is None else section


def _keep_class_token(top: Section, vision: VisionConfig, model_type: str) -> bool:
    keep = top.choice("vision_feature_select_strategy", "default", _STRATEGIES)
    key = "vision_feature_select_strategy"
    if not keep and not vision.has_class_token:
        # transformers would drop the first patch here, which no published checkpoint wants
        raise ConfigError(
            "'default' drops the class token, and this tower has none",
            where=top.where(key),
            fix="Supported for a tower without class token: full.",
        )
    if keep and vision.has_class_token and model_type == "llava_next":
        raise ConfigError(
            "tiles of llava_next cannot be put together when each keeps its class token",
            where=top.where(key),
            fix="Supported for CLIP in llava_next: default.",
        )
    return keep


def _grid_pinpoints(top: Section, tile: int) -> tuple[tuple[int, int], ...]:
    if top.get("use_image_newline_parameter") is not None:
        top.fixed("use_image_newline_parameter", True)
    value = top.get("image_grid_pinpoints")
    value = _PINPOINTS if value is None else value
    wanted = f"a list of [height, width] in pixels, multiples of the tile of {tile}"
    if not isinstance(value, list) or not value:
        raise top.error("image_grid_pinpoints", wanted)
    for point in value:
        if not isinstance(point, list) or len(point) != 2 or not all(_is_multiple(edge, tile) for edge in point):
            raise top.error("image_grid_pinpoints", wanted)
    return tuple((height, width) for height, width in value)


def _is_multiple(edge: Any, tile: int) -> bool:
    return isinstance(edge, int) and not isinstance(edge, bool) and edge > 0 and edge % tile == 0


def _image_token_id(top: Section) -> int:
    keys = [key for key in ("image_token_index", "image_token_id") if top.get(key) is not None]
    ids = [top.integer(key, 0, minimum=0) for key in keys] or [32_000]
    if len(set(ids)) > 1:
        raise top.error("image_token_id", f"the same id as image_token_index, {ids[0]}")
    return ids[0]
