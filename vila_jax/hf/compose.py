"""A model out of parts: a language model and a vision tower that were published alone, and a projector that is new.

    decoder   LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM
    tower     CLIPVisionModel, SiglipVisionModel, InternVisionModel; of a whole CLIP or SigLIP its tower
    layout    `vila`, `nvila`: three folders; `llava`: Hugging Face's LLaVA, with an image token of its own

Nothing is copied: tensors are read from where they lie, and what is new is made when it is read. VILA begins in the
same way (`llava/model/language_model/builder.py`, `multimodal_encoder/builder.py`, main branch).
"""

import dataclasses
import tempfile
from collections.abc import Mapping

import jax.numpy as jnp
from etils import epath
from flax import nnx

from vila_jax.assemble import STYLE_KEY
from vila_jax.errors import CheckpointError, ConfigError
from vila_jax.hf import image_token
from vila_jax.hf.checkpoint import Checkpoint, open_checkpoint
from vila_jax.hf.config import ModelConfig, parse_config
from vila_jax.hf.files import open_shards, read_json
from vila_jax.hf.hub import locate
from vila_jax.hf.keys import key_table
from vila_jax.hf.out_tensor import Composed, OutTensor, json_bytes
from vila_jax.hf.parts import JSON, Parts, preprocessor_config, three_folders
from vila_jax.hf.targets import make_target, small_files
from vila_jax.hf.vision_config import VILA_TOWERS
from vila_jax.hf.writing import in_target
from vila_jax.nn.config import VLMConfig
from vila_jax.nn.params import dotted
from vila_jax.nn.projector import Projector
from vila_jax.text.prompts import vila_tokenizer

_DECODERS = ("llama", "mistral", "qwen2")
_ERAS = {"vila": "vila1.5", "nvila": "nvila", "llava": None}  # a LLaVA is of no generation of VILA
_WRAPPER = "vision_model."
_TEXT_HALF = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias")
_NOT_OF_LLM = ("config.json", "preprocessor_config.json", "processor_config.json")
_TABLES = ("llm/model.embed_tokens.weight", "llm/lm_head.weight")
_DYNAMIC = {
    "min_tiles": 1,
    "max_tiles": 12,
    "image_encoder": '{"_target_": "llava.model.encoders.BasicImageEncoder"}',
}


@dataclasses.dataclass(frozen=True)
class Composition:
    """A checkpoint before its small files are anywhere.

    Attributes:
      files: relative path -> contents, of everything but the weights.
      tensors: by the name that they have in the layout.
    """

    files: dict[str, bytes]
    tensors: dict[str, OutTensor]

    def checkpoint(self, folder: epath.PathLike) -> Checkpoint:
        """The checkpoint, once its files are written to `folder`."""
        opened = open_checkpoint(folder, weights=False)
        shard = Composed(epath.Path(folder), {name: t.info for name, t in self.tensors.items()}, self.tensors)
        return dataclasses.replace(opened, shards={"parts": shard}, locations=dict.fromkeys(self.tensors, "parts"))


@dataclasses.dataclass(frozen=True)
class _Part:
    """Config, folder and tensors of a part that was published alone."""

    folder: epath.Path
    config: JSON
    tensors: dict[str, OutTensor]


def compose(
    decoder: str, tower: str, *, layout: str, projector: str, style: str | None, pictures: str, seed: int = 0
) -> Composition:
    """Puts a model together.

    Args:
      decoder, tower: folders, or names on the Hub.
      layout: `vila`, `nvila` or `llava`.
      projector: its name in VILA, such as `mlp2x_gelu`.
      style: name of the conversation style of the model; None for the one that its decoder suggests.
      pictures: how they are prepared, as VILA's `image_aspect_ratio`.
      seed: of the projector.

    Raises:
      ConfigError: a part of another kind, or parts that do not fit each other or the layout.
      CheckpointError: files are missing or damaged, or the tokenizer belongs to another model.
      HubError: a part cannot be fetched.
    """
    if layout not in _ERAS:
        raise ConfigError(f"unknown layout {layout!r}", where="parts.layout", fix=f"Supported: {', '.join(_ERAS)}.")
    llm, eyes = _decoder(decoder), _tower(tower)
    whole = _whole(eyes.config, pictures)
    if layout == "nvila":
        whole |= {"chat_template": style} if style is not None else {}
    elif layout == "vila" and style is not None:
        whole[STYLE_KEY] = style
    preprocessor = read_json(eyes.folder, "preprocessor_config.json") or {}
    parts = Parts(llm.config, eyes.config, projector, whole, preprocessor)
    config = _parsed(parts, layout)
    rows = _rows(llm, config)
    if config.pictures is not None and "image_mean" not in preprocessor:
        parts = dataclasses.replace(parts, preprocessor=preprocessor_config(config.pictures))
    parts = dataclasses.replace(parts, llm=llm.config | {"vocab_size": rows})
    own = {name: data for name, data in small_files(llm.folder).items() if name not in _NOT_OF_LLM}
    files = {f"llm/{name}": data for name, data in own.items()}
    files |= {name: json_bytes(value) for name, value in three_folders(parts).items()}
    tensors = {f"llm/{name}": tensor for name, tensor in llm.tensors.items()}
    tensors |= {name: image_token.resized(tensors[name], rows) for name in _TABLES if name in tensors}
    tensors |= {f"vision_tower/{name}": tensor for name, tensor in eyes.tensors.items()}
    composed = Composition(files, tensors | _projector(config.vlm, seed))
    return _as_llava(composed, style) if layout == "llava" else composed


def _decoder(name: str) -> _Part:
    folder = locate(name)
    config = read_json(folder, "config.json")
    if config is None or config.get("model_type") not in _DECODERS:
        kind = "there is no config.json" if config is None else f"its model_type is {config.get('model_type')!r}"
        raise ConfigError(
            f"this is no language model: {kind}",
            where=f"parts.decoder: {folder}",
            fix=f"Supported: {', '.join(_DECODERS)}.",
        )
    shards = open_shards(folder).values()
    return _Part(folder, config, {name: OutTensor.copy(shard, name) for shard in shards for name in shard.tensors})


def _tower(name: str) -> _Part:
    folder = locate(name)
    config = read_json(folder, "config.json") or {}
    inner = config.get("vision_config")
    if isinstance(inner, Mapping) and config.get("model_type") in ("clip", "siglip"):  # both halves of a whole one
        config = {"model_type": f"{config['model_type']}_vision_model", **inner}
    if config.get("model_type") not in VILA_TOWERS:
        raise ConfigError(
            f"this is no vision tower: its model_type is {config.get('model_type')!r}",
            where=f"parts.tower: {folder}",
            fix=f"Supported: {', '.join(('clip', 'siglip', *VILA_TOWERS))}.",
        )
    wrapper = "" if config["model_type"] == "intern_vit_6b" else _WRAPPER
    tensors = {}
    for shard in open_shards(folder).values():
        for own in shard.tensors:
            if not own.startswith(_TEXT_HALF):
                tensors[wrapper + own.removeprefix(wrapper)] = OutTensor.copy(shard, own)
    return _Part(folder, config, tensors)


def _whole(tower: JSON, pictures: str) -> JSON:
    """VILA's keys of the root config."""
    kind = VILA_TOWERS[tower["model_type"]].kind
    width = tower.get("hidden_size", VILA_TOWERS[tower["model_type"]].defaults["hidden_size"])
    return {
        "image_aspect_ratio": pictures,
        "mm_hidden_size": width,
        "mm_vision_select_layer": -1 if kind == "intern" else -2,
        "mm_vision_select_feature": "cls_patch" if kind == "siglip" else "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
    } | (_DYNAMIC if pictures == "dynamic" else {})


def _parsed(parts: Parts, layout: str) -> ModelConfig:
    """The config of the whole.

    Raises:
      ConfigError: the parts do not fit each other, or make a model of another generation than the layout's.
    """
    config = parse_config(three_folders(parts)["config.json"], preprocessor=parts.preprocessor)
    if _ERAS[layout] not in (None, config.era):
        fix = "Use layout `nvila`." if config.era == "nvila" else "Give it a chat template: `style`."
        raise ConfigError(
            f"these parts make a model of {config.era}, not of {layout}: {config.era_reason}",
            where="parts.layout",
            fix=fix,
        )
    return config


def _rows(llm: _Part, config: ModelConfig) -> int:
    """Rows of the embedding: those that there are, and one for every added token that has none.

    Raises:
      CheckpointError: the tokenizer has words that the language model does not know.
    """
    tokenizer, rows = vila_tokenizer(llm.folder), config.vlm.decoder.vocab_size
    missing = range(rows, tokenizer.stored_size)
    if not set(missing) <= tokenizer.added_ids:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.stored_size:,} tokens, but the language model only {rows:,} embeddings",
            where=str(llm.folder),
            fix="Use the tokenizer that was published with these weights.",
        )
    return max(rows, tokenizer.stored_size)


def _projector(config: VLMConfig, seed: int) -> dict[str, OutTensor]:
    """A new projector in float32, by the names that it has in three folders."""
    table = key_table("folders", config)
    state = nnx.state(Projector(config.projector, rngs=nnx.Rngs(seed), dtype=jnp.float32))
    tensors = {}
    for path, leaf in nnx.to_flat_state(state):
        name = str(table.to_hf(dotted(("projector", *path))))
        tensors[name] = OutTensor.of_array(name, leaf.get_value())
    return tensors


def _as_llava(composed: Composition, style: str | None) -> Composition:
    """The same model as Hugging Face's LLaVA."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = epath.Path(scratch)
        for name, data in composed.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        checkpoint = composed.checkpoint(folder)
        try:
            target = make_target(checkpoint, "hf", None, style)
        except ConfigError as error:
            fix = "Use layout `vila` or `nvila`."
            raise ConfigError(error.what, where="parts, layout `llava`", fix=fix) from error
        return Composition(target.files, in_target(checkpoint, target, composed.tensors, None))
