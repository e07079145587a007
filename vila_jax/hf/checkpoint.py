"""A checkpoint on disk or on the Hub: its config, and where every tensor lies. No tensor is read here.

Everything that can be wrong with the files is found before any device memory is touched.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterable
from typing import Any

from etils import epath

from vila_jax.errors import CheckpointError, ConfigError
from vila_jax.hf.config import ModelConfig, parse_config, text_claims_tie
from vila_jax.hf.hub import locate
from vila_jax.hf.keys import HEAD, canonical
from vila_jax.hf.safetensors import Shard, open_shard

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors")  # no separators, hence no way out of the folder
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_CONVERT = (
    "Convert them to safetensors once, where torch is installed and if you trust their origin: "
    'python -c "from transformers import AutoModelForImageTextToText as M; '
    "M.from_pretrained('SOURCE').save_pretrained('TARGET', safe_serialization=True)\""
)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
      folder: where its files lie.
      config: the parsed config.
      raw_config: contents of `config.json`, for export.
      shards: file name -> its header.
      locations: name of every tensor, as the files spell it -> file name.
      preprocessor: contents of `preprocessor_config.json` (pixels); empty when there is none, as the next two.
      processor: contents of `processor_config.json` (how pictures and prompts meet).
      generation: contents of `generation_config.json`.
    """

    folder: epath.Path
    config: ModelConfig
    raw_config: dict[str, Any]
    shards: dict[str, Shard]
    locations: dict[str, str]
    preprocessor: dict[str, Any]
    processor: dict[str, Any]
    generation: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """Size of all tensors as stored."""
        return sum(info.nbytes for shard in self.shards.values() for info in shard.tensors.values())


def open_checkpoint(
    path_or_hub_id: str | epath.PathLike, *, revision: str | None = None, weights: bool = True
) -> Checkpoint:
    """Opens a local folder, or a model on the Hub (downloaded into its cache first).

    Args:
      path_or_hub_id: a folder (`gs://` works) or an id such as `llava-hf/llava-1.5-7b-hf`.
      revision: branch, tag or commit on the Hub.
      weights: False leaves the files of the weights alone, so that a folder without them can be described.

    Raises:
      ConfigError: `config.json` is missing, is not JSON, or asks for something that is not supported.
      CheckpointError: files are missing, damaged, unsafe, or contradict each other.
      HubError: there is no such model, or it cannot be fetched.
    """
    folder = locate(path_or_hub_id, revision=revision)
    raw_config = _read_json(folder, "config.json")
    if raw_config is None:
        raise ConfigError("there is no config.json", where=str(folder), fix="Give the folder of a whole checkpoint.")
    generation = _read_json(folder, "generation_config.json") or {}
    config = parse_config(raw_config, generation)
    shards, locations = _open_shards(folder) if weights else ({}, {})
    return Checkpoint(
        folder=folder,
        config=_settle_tying(config, raw_config, locations) if weights else config,
        raw_config=raw_config,
        shards=shards,
        locations=locations,
        preprocessor=_read_json(folder, "preprocessor_config.json") or {},
        processor=_read_json(folder, "processor_config.json") or {},
        generation=generation,
    )


def _settle_tying(config: ModelConfig, raw_config: dict[str, Any], names: Iterable[str]) -> ModelConfig:
    """Ties the head when only `text_config` asks for it and the files hold none.

    transformers before version 5 read that key for every model, later ones ignore it for `llava_next`; whether a head
    was written shows by which of the two a checkpoint was meant.
    """
    decoder = config.vlm.decoder
    if decoder.tie_embeddings or not text_claims_tie(raw_config) or HEAD in map(canonical, names):
        return config
    decoder = dataclasses.replace(decoder, tie_embeddings=True)
    return dataclasses.replace(config, vlm=dataclasses.replace(config.vlm, decoder=decoder))


def _read_json(folder: epath.Path, name: str) -> dict[str, Any] | None:
    """Contents of a JSON file, None when there is none."""
    path = folder / name
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not valid JSON ({error})", where=str(path), fix="Download the file again.") from None
    if not isinstance(value, dict):
        raise ConfigError(f"expected a JSON object, got {type(value).__name__}", where=str(path))
    return value


def _open_shards(folder: epath.Path) -> tuple[dict[str, Shard], dict[str, str]]:
    """Headers by file name, and the file of every tensor: one file, or several with an index."""
    if (folder / SINGLE).exists():
        shard = open_shard(_inside(folder, SINGLE))
        return {SINGLE: shard}, dict.fromkeys(shard.tensors, SINGLE)
    if not (folder / INDEX).exists():
        raise _no_weights(folder)
    locations = _read_index(folder)
    shards = {name: open_shard(_inside(folder, name)) for name in sorted(set(locations.values()))}
    absent = [name for name, file in locations.items() if name not in shards[file].tensors]
    unlisted = [name for shard in shards.values() for name in shard.tensors if name not in locations]
    for names, problem in ((absent, "names tensors that their files do not hold"), (unlisted, "does not list tensors")):
        if names:
            raise CheckpointError(
                f"index {problem}: {name_list(names)}", where=str(folder / INDEX), fix="Download the checkpoint again."
            )
    return shards, locations


def _read_index(folder: epath.Path) -> dict[str, str]:
    """The checked `weight_map` of the index."""
    where = str(folder / INDEX)
    try:
        weight_map = (_read_json(folder, INDEX) or {}).get("weight_map")
    except ConfigError as error:
        raise CheckpointError(error.what, where=where, fix=error.fix) from None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(f, str) for f in weight_map.values()):
        raise CheckpointError("index has no weight_map from tensor names to file names", where=where)
    files = sorted(set(weight_map.values()))
    unsafe = [file for file in files if not _FILE_NAME.fullmatch(file)]
    if unsafe:
        raise CheckpointError(
            f"index names files that are not safetensors files of its own folder: {name_list(map(repr, unsafe))}",
            where=where,
            fix="Do not use this checkpoint unless you know why it points elsewhere.",
        )
    missing = [file for file in files if not (folder / file).exists()]
    if missing:
        raise CheckpointError(
            f"index names files that are missing: {name_list(missing)}", where=where, fix="Download them again."
        )
    return weight_map


def _inside(folder: epath.Path, name: str) -> epath.Path:
    """A file of the folder; a link may lead to the blobs of the same model in the Hub's cache, and nowhere else."""
    path = folder / name
    if "://" in str(path):
        return path
    root = pathlib.Path(folder).resolve()
    root = root.parent.parent if root.parent.name == "snapshots" else root
    if not pathlib.Path(path).resolve().is_relative_to(root):
        raise CheckpointError(
            "this is a link that leaves the folder of the checkpoint", where=str(path), fix="Put the file itself there."
        )
    return path


def _no_weights(folder: epath.Path) -> CheckpointError:
    files = sorted(file.name for file in folder.iterdir())
    if any(file.endswith(".safetensors") for file in files):
        return CheckpointError(
            f"there is neither {SINGLE} nor {INDEX}", where=str(folder), fix="Download the checkpoint again."
        )
    pickles = [file for file in files if file.endswith(_PICKLES)]
    if not pickles:
        what = f"there are no weights here, neither {SINGLE} nor {INDEX}"
        return CheckpointError(what, where=str(folder), fix=f"If they are pickles (.bin, .pt): {_CONVERT}")
    what = f"the weights are pickles ({name_list(pickles)}), which can run code when they are opened"
    return CheckpointError(what, where=str(folder), fix=_CONVERT)


def name_list(names: Iterable[str], limit: int = 20) -> str:
    """Names for a message, the first of them when there are many."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
