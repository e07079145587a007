"""The files of a folder: its JSON, and the safetensors with their headers. No tensor is read here.

Nothing outside the folder is ever opened, whatever an index or a link says.
"""

import json
import pathlib
import re
from collections.abc import Iterable
from typing import Any

from etils import epath

from vila_jax.errors import CheckpointError, ConfigError
from vila_jax.hf.safetensors import Shard, open_shard

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors")  # no separators, hence no way out of the folder
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_CONVERT = (
    "Convert them to safetensors once, where torch is installed and if you trust their origin: "
    'python -c "from transformers import AutoModelForImageTextToText as M; '
    "M.from_pretrained('SOURCE').save_pretrained('TARGET', safe_serialization=True)\""
)


def read_json(folder: epath.Path, name: str) -> dict[str, Any] | None:
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


Shards = dict[str, Shard]
"""File -> its header."""


def open_shards(folder: epath.Path, root: epath.Path | None = None) -> Shards:
    """Headers of the weights of a folder by file name: one file, or several with an index.

    Args:
      root: of the checkpoint, if `folder` is one of its parts: links may lead anywhere in it.

    Raises:
      CheckpointError: files are missing, damaged, unsafe, or contradict each other.
    """
    root = folder if root is None else root
    if (folder / SINGLE).exists():
        return {SINGLE: open_shard(inside(root, folder / SINGLE))}
    if not (folder / INDEX).exists():
        raise _no_weights(folder)
    locations = _read_index(folder)
    shards = {name: open_shard(inside(root, folder / name)) for name in sorted(set(locations.values()))}
    absent = [name for name, file in locations.items() if name not in shards[file].tensors]
    unlisted = [name for file, shard in shards.items() for name in shard.tensors if locations.get(name) != file]
    for names, problem in ((absent, "names tensors that their files do not hold"), (unlisted, "does not list tensors")):
        if names:
            raise CheckpointError(
                f"index {problem}: {name_list(names)}", where=str(folder / INDEX), fix="Download the checkpoint again."
            )
    return shards


def under(prefix: str, shards: Shards) -> Shards:
    """The same files and tensors, under names that start with `prefix`."""
    return {
        prefix + file: Shard(shard.path, {prefix + name: info for name, info in shard.tensors.items()})
        for file, shard in shards.items()
    }


def _read_index(folder: epath.Path) -> dict[str, str]:
    """The checked `weight_map` of the index."""
    where = str(folder / INDEX)
    try:
        weight_map = (read_json(folder, INDEX) or {}).get("weight_map")
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


def inside(root: epath.Path, path: epath.Path) -> epath.Path:
    """A file of the checkpoint; a link may lead to the blobs of the same model in the Hub's cache, and nowhere else."""
    if "://" in str(path):
        return path
    home = pathlib.Path(root).resolve()
    home = home.parent.parent if home.parent.name == "snapshots" else home
    if not pathlib.Path(path).resolve().is_relative_to(home):
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
