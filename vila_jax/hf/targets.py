"""What an export consists of besides its tensors: every file of the target layout, checked to mean the same model.

Files of the same layout are copied as they are. For another layout the configs are written anew, then read back as if
they were a checkpoint: a network that comes out otherwise is one that the target cannot express.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from vila_jax.errors import ConfigError
from vila_jax.hf import image_token, parts
from vila_jax.hf.checkpoint import Checkpoint
from vila_jax.hf.config import parse_config
from vila_jax.hf.conversation import conversation_files, without_conversation
from vila_jax.hf.fast_tokenizer import with_fast, without_fast
from vila_jax.hf.files import inside
from vila_jax.hf.image_token import ImageToken
from vila_jax.hf.keys import KeyTable, key_table
from vila_jax.hf.model_config import Layout, ModelConfig
from vila_jax.hf.out_tensor import json_bytes
from vila_jax.hf.vila_config import CONFIG_KEYS
from vila_jax.hf.vision_config import clip_config
from vila_jax.nn.config import VLMConfig

LAYOUTS: dict[str, Layout] = {"hf": "llava", "vila": "folders", "llava": "v1"}
"""What the user calls a layout -> what we do."""

_SMALL = (".json", ".model", ".txt", ".jinja")
_NOT_TOKENIZER = ("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json")
_SINGLE_TILE = ("resize", "pad", "default")
_TOWER_OF_V1 = "model.vision_tower.vision_tower."


@dataclasses.dataclass(frozen=True)
class Target:
    """An export but for its tensors.

    Attributes:
      layout: how its files lie.
      table: names of its tensors and ours.
      files: relative path -> contents; `config.json` is the last.
      image_token: the rows of the embedding table; None leaves them alone.
      style: name of the conversation style that the chat template of a LLaVA speaks, if it was given one.
    """

    layout: Layout
    table: KeyTable
    files: dict[str, bytes]
    image_token: ImageToken | None = None
    style: str | None = None

    @property
    def image_token_id(self) -> int | None:
        """Id of the image token, where one was given to a LLaVA."""
        return None if self.image_token is None else self.image_token.id


def make_target(checkpoint: Checkpoint, to: str, dtype: str | None, style: str | None = None) -> Target:
    """The target of a checkpoint.

    Args:
      dtype: name of the dtype to store, which the configs mention; None keeps theirs.
      style: name of the conversation style of a VILA that becomes a LLaVA; None for the one that it asks for.

    Raises:
      ConfigError: the target has no place for something that the checkpoint has.
      CheckpointError: files of the checkpoint are missing or damaged.
    """
    layout, config = LAYOUTS[to], checkpoint.config
    if style is not None and (layout != "llava" or config.era is None):
        what = "a conversation style is written where a VILA becomes Hugging Face's LLaVA, and nowhere else"
        raise ConfigError(what, where="style", fix="Leave it out.")
    table = key_table(layout, config.vlm)
    if layout == config.layout:
        return Target(layout, table, _ordered(_as_it_is(checkpoint), dtype))
    _refuse(config, to)
    own = parts.read_parts(checkpoint)
    token = None
    if layout == "llava":
        token = image_token.added(checkpoint)
    elif config.layout == "llava":
        token = image_token.removed(checkpoint)
    if token is not None:
        own = dataclasses.replace(own, llm=own.llm | {"vocab_size": token.rows})
    files = _configs(checkpoint, layout, own, token)
    _check_same(checkpoint, layout, files, token, to)
    copied = _beside_the_tokenizer(checkpoint, layout, token)
    if layout == "llava":
        style, conversation = conversation_files(checkpoint, style)
        copied |= conversation
    return Target(layout, table, _ordered({**copied, **files}, dtype), token, style)


def _refuse(config: ModelConfig, to: str) -> None:
    """What a target is known to have no place for."""
    projector, pictures, vision = config.vlm.projector, config.pictures, config.vlm.vision
    if to == "vila":
        return
    name = {"hf": "Hugging Face's LLaVA", "llava": "the layout of the original LLaVA"}[to]
    problems = []
    if projector.window > 1 or projector.norms:
        size = projector.window
        problems.append(f"a projector that merges windows of {size} x {size} patches")
    elif to == "hf" and len(projector.widths) != 3:
        problems.append(f"a projector of {len(projector.widths) - 1} layers (it has two)")
    if pictures is not None and pictures.mode not in _SINGLE_TILE:
        problems.append(f"pictures cut by {pictures.mode!r} (they are one tile)")
    if config.video.tsp is not None:
        problems.append("videos that are pooled (TSP)")
    if vision.kind == "intern" or (to == "llava" and vision.kind != "clip"):
        problems.append({"intern": "an InternViT tower", "siglip": "a SigLIP tower"}[vision.kind])
    if to == "llava" and config.vlm.has_newline:
        problems.append("the tiles and newlines of LLaVA-NeXT")
    if problems:
        fix = "Use `--to vila`." if config.era is not None else "Use `--to hf`."
        raise ConfigError(f"{name} has no place for {', for '.join(problems)}", where="--to", fix=fix)


def _as_it_is(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The small files of a checkpoint, and those of parts that are fetched from elsewhere."""
    folder = checkpoint.folder
    if checkpoint.config.layout != "folders":
        return small_files(folder)
    files = small_files(folder)
    for part, key in CONFIG_KEYS.items():
        own = small_files(folder / part, folder) if (folder / part).is_dir() else {}
        if "config.json" not in own:
            own["config.json"] = json_bytes(checkpoint.raw_config[key])
        if part == "vision_tower" and checkpoint.preprocessor and "preprocessor_config.json" not in own:
            own["preprocessor_config.json"] = json_bytes(checkpoint.preprocessor)
        files |= {f"{part}/{name}": data for name, data in own.items()}
    return files


def small_files(folder: epath.Path, root: epath.Path | None = None) -> dict[str, bytes]:
    """JSON, tokenizer and template files by name.

    Args:
      root: of the checkpoint, if `folder` is one of its parts.
    """
    found = (path for path in folder.iterdir() if path.name.endswith(_SMALL) and not path.is_dir())
    wanted = sorted(path for path in found if not path.name.endswith(".index.json"))
    return {path.name: inside(root or folder, path).read_bytes() for path in wanted}


def _configs(
    checkpoint: Checkpoint, layout: Layout, own: parts.Parts, token: ImageToken | None
) -> dict[str, dict[str, Any]]:
    if layout == "folders":
        return parts.three_folders(own)
    if layout == "v1":
        return parts.one_folder(own)
    config, pictures = checkpoint.config, checkpoint.config.pictures
    assert token is not None and pictures is not None
    has_head = any(".head." in name for name in checkpoint.locations)
    decoder = dataclasses.replace(config.vlm.decoder, vocab_size=token.rows)
    files = parts.hf_llava(own, decoder, pictures, has_head)
    files["config.json"]["image_token_index"] = token.id
    return files


def _check_same(
    checkpoint: Checkpoint, layout: Layout, files: dict[str, Any], token: ImageToken | None, to: str
) -> None:
    """Reads the configs back.

    Raises:
      ConfigError: they describe another model.
    """
    config, raw = checkpoint.config, files["config.json"]
    if layout == "v1":
        table = checkpoint.table
        shapes = {
            str(rename(name, table, config.layout, key_table("v1", config.vlm), "v1")): shard.tensors[name].shape
            for shard in checkpoint.shards.values()
            for name in shard.tensors
        }
        tower = {name.removeprefix(_TOWER_OF_V1): shape for name, shape in shapes.items() if _TOWER_OF_V1 in name}
        raw = raw | {"vision_config": clip_config(tower, str(checkpoint.folder))}
    preprocessor = next(values for name, values in files.items() if name.endswith("preprocessor_config.json"))
    written = parse_config(raw, checkpoint.generation, preprocessor=preprocessor)
    rows = config.vlm.decoder.vocab_size if token is None else token.rows
    differences = _differences(_comparable(config.vlm, rows), _comparable(written.vlm, written.vlm.decoder.vocab_size))
    if config.pictures is not None and written.pictures is not None:
        differences += _differences(config.pictures, written.pictures)
    if differences:
        fix = "The shape of the tower's tensors is all that this layout tells of it." if layout == "v1" else None
        what = f"this model cannot be expressed by `--to {to}`: {'; '.join(differences)}"
        raise ConfigError(what, where=str(checkpoint.folder), fix=fix)


def _comparable(vlm: VLMConfig, rows: int) -> VLMConfig:
    """With this number of rows, and the same said of a class token in every layout where there is none."""
    decoder = dataclasses.replace(vlm.decoder, vocab_size=rows)
    keeps = vlm.keep_class_token and vlm.vision.has_class_token
    return dataclasses.replace(vlm, decoder=decoder, keep_class_token=keeps)


def _differences(ours: Any, written: Any, name: str = "") -> list[str]:
    """The fields of two dataclasses that differ, as sentences."""
    if dataclasses.is_dataclass(ours) and type(ours) is type(written):
        prefix = f"{name}." if name else ""
        fields = (field.name for field in dataclasses.fields(ours))
        return [d for f in fields for d in _differences(getattr(ours, f), getattr(written, f), f"{prefix}{f}")]
    return [] if ours == written else [f"{name} is {ours}, and would become {written}"]


def _beside_the_tokenizer(checkpoint: Checkpoint, layout: Layout, token: ImageToken | None) -> dict[str, bytes]:
    """Files of the tokenizer and `generation_config.json`, where they belong in the target."""
    folder = checkpoint.tokenizer_folder
    files = small_files(folder, checkpoint.folder)
    tokenizer = {name: data for name, data in files.items() if name not in _NOT_TOKENIZER}
    if layout == "llava":
        tokenizer = with_fast(tokenizer, folder)
    elif checkpoint.config.layout == "llava":
        tokenizer = without_conversation(without_fast(tokenizer, folder))
    if token is not None:
        tokenizer = image_token.tokenizer_files(tokenizer, token)
    kept = tokenizer | {name: data for name, data in files.items() if name == "generation_config.json"}
    return {f"llm/{name}" if layout == "folders" else name: data for name, data in kept.items()}


def _ordered(files: Mapping[str, bytes | dict[str, Any]], dtype: str | None) -> dict[str, bytes]:
    """All contents as bytes, the root's `config.json` last."""
    written = {}
    for name in sorted(files, key=lambda name: (name == "config.json", name)):
        data = files[name]
        is_config = name == "config.json" or name.endswith("/config.json")
        if dtype is not None and is_config:
            data = _with_dtype(json.loads(data) if isinstance(data, bytes) else data, dtype)
        written[name] = data if isinstance(data, bytes) else json_bytes(data)
    return written


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """A config, and those inside it, that mention this dtype wherever they mention one."""
    inner = {key: _with_dtype(value, dtype) for key, value in config.items() if isinstance(value, dict)}
    names = {"dtype": dtype, "torch_dtype": dtype, "model_dtype": f"torch.{dtype}"}
    return config | inner | {key: name for key, name in names.items() if key in config}


_PREFIXES: dict[Layout, tuple[str, str]] = {  # of the tower and of the decoder
    "llava": ("vision_tower.", "language_model."),
    "folders": ("vision_tower/", "llm/"),
    "v1": (_TOWER_OF_V1, ""),
}


def rename(name: str, source: KeyTable, source_layout: Layout, target: KeyTable, target_layout: Layout) -> str:
    """The name in the target of a tensor of the source, also of one that no model has a use for."""
    if source_layout == target_layout:
        return name
    path = source.from_hf(name)
    renamed = None if path is None else target.to_hf(path)
    if renamed is not None:
        return renamed
    name = source.canonical(name)
    for old, new in zip(_PREFIXES[source_layout], _PREFIXES[target_layout], strict=True):
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise ConfigError("this layout has no place for such a tensor", where=name)
