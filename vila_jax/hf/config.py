"""A checkpoint's `config.json` -> `ModelConfig`.

Published configs leave out whatever equals the default of their transformers class, so those defaults are part of the
format; they are those of transformers 5.23. A value that this library does not support is a `ConfigError` that names
the key, the value and what is supported.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vila_jax.errors import ConfigError
from vila_jax.hf.section import Section, supported
from vila_jax.hf.text_config import decoder_defaults, parse_text
from vila_jax.hf.vision_config import ACTIVATIONS, parse_vision
from vila_jax.nn.config import ProjectorConfig, VisionConfig, VLMConfig
from vila_jax.nn.rope import context_length

_DISPLAY = {"llava": "LLaVA-1.5", "llava_next": "LLaVA-NeXT"}
_STRATEGIES = {"default": False, "patch": False, "full": True, "cls_patch": True}  # -> keeps the class token
_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that `config.json` (and `generation_config.json`) says about a model.

    Attributes:
      vlm: the network.
      model_type: `llava` or `llava_next`.
      architecture: name for display, such as `LLaVA-NeXT (CLIP + Mistral)`.
      image_token_id: id of the placeholder of visual tokens in a prompt.
      grid_pinpoints: resolutions `(height, width)` that a picture may be tiled to; None for one tile per picture.
      eos_ids: ids that end an answer.
      context_length: positions that the decoder can address.
    """

    vlm: VLMConfig
    model_type: str
    architecture: str
    image_token_id: int
    grid_pinpoints: tuple[tuple[int, int], ...] | None
    eos_ids: tuple[int, ...]
    bos_id: int | None
    pad_id: int | None
    context_length: int


def parse_config(config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> ModelConfig:
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
    vision = parse_vision(top)
    decoder = parse_text(top, _tied(top, model_type))
    feature_layers = _feature_layers(top, vision.num_layers)
    vlm = VLMConfig(
        vision=vision,
        projector=ProjectorConfig(
            widths=(vision.hidden_size * len(feature_layers), decoder.hidden_size, decoder.hidden_size),
            hidden_act=top.choice("projector_hidden_act", "gelu", ACTIVATIONS),
            bias=top.flag("multimodal_projector_bias", True),
        ),
        decoder=decoder,
        feature_layers=feature_layers,
        keep_class_token=_keep_class_token(top, vision, model_type),
        has_newline=model_type == "llava_next",
    )
    language, ids = decoder_defaults(top.section("text_config"))
    sources = (Section(generation or {}, "generation_config.json"), top, top.section("text_config"), Section(ids, ""))
    return ModelConfig(
        vlm=vlm,
        model_type=model_type,
        architecture=f"{_DISPLAY[model_type]} ({'CLIP' if vision.kind == 'clip' else 'SigLIP'} + {language})",
        image_token_id=_image_token_id(top),
        grid_pinpoints=_grid_pinpoints(top, vision.image_size) if model_type == "llava_next" else None,
        eos_ids=_token_ids(sources, "eos_token_id"),
        bos_id=next(iter(_token_ids(sources, "bos_token_id")), None),
        pad_id=next(iter(_token_ids(sources, "pad_token_id")), None),
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


def _feature_layers(top: Section, num_layers: int) -> tuple[int, ...]:
    """Hidden states that feed the projector, as indices `0..num_layers`, 0 being the embeddings."""
    value = top.get("vision_feature_layer", -2)
    layers = value if isinstance(value, list) else [value]
    states = num_layers + 1
    valid = [isinstance(i, int) and not isinstance(i, bool) and -states <= i < states for i in layers]
    if not layers or not all(valid):
        raise top.error(
            "vision_feature_layer", f"hidden states of a tower of {num_layers} blocks, {-states} to {num_layers}"
        )
    return tuple(i % states for i in layers)


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


def _token_ids(sources: tuple[Section, ...], key: str) -> tuple[int, ...]:
    """The first of `sources` that has the key decides; a list is as good as a number."""
    for source in sources:
        value = source.get(key)
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise source.error(key, "a token id or a list of them", supported(["null", "an id", "a list of ids"]))
        return tuple(ids)
    return ()
