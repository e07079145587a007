"""Copies of the golden VILA checkpoints, to change one thing in each."""

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

from safetensors.torch import load_file, save_file

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "vila"
CHECKPOINTS = GOLDEN / "checkpoints"
NAMES = sorted(path.name for path in CHECKPOINTS.iterdir())


def copy(name: str, target: pathlib.Path) -> pathlib.Path:
    return shutil.copytree(CHECKPOINTS / name, target / name)


def edit_json(path: pathlib.Path, **values: Any) -> None:
    """Sets keys; Ellipsis removes one."""
    merged = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in merged.items() if value is not ...}))


def edit_tensors(path: pathlib.Path, edit: Callable[[dict], dict]) -> None:
    save_file(edit(load_file(path)), path)


def merge_shards(folder: pathlib.Path) -> pathlib.Path:
    """The shards of a folder as one file."""
    shards = sorted(folder.glob("*.safetensors"))
    tensors = {name: tensor for path in shards for name, tensor in load_file(path).items()}
    for path in [*shards, folder / "model.safetensors.index.json"]:
        path.unlink()
    save_file(tensors, folder / "model.safetensors")
    return folder / "model.safetensors"


def all_tensors(folder: pathlib.Path) -> dict[str, Any]:
    """Every tensor of a checkpoint; those in a folder of their own under `FOLDER/NAME`."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        prefix = "" if path.parent == folder else f"{path.parent.name}/"
        found |= {prefix + name: tensor for name, tensor in load_file(path).items()}
    return found
