"""Copies of the golden VILA checkpoints, to change one thing in each."""

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
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


def assert_equal_tensors(first: pathlib.Path, second: pathlib.Path) -> None:
    """Same names, dtypes, shapes and bits."""
    ours, theirs = all_tensors(first), all_tensors(second)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0, equal_nan=True, msg=name)


def small_files(folder: pathlib.Path) -> dict[str, bytes]:
    """Contents of everything but weights and their index."""
    paths = (path for path in folder.rglob("*") if path.suffix in (".json", ".model", ".txt", ".jinja"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if not path.name.endswith("index.json")}


def with_llava_projector(folder: pathlib.Path, **config: Any) -> pathlib.Path:
    """A VILA that Hugging Face's LLaVA can express: two layers, and pictures that are squashed.

    Args:
      config: other keys of the root config.
    """
    sizes = [json.loads((folder / part / "config.json").read_text())["hidden_size"] for part in ("vision_tower", "llm")]
    edit_json(folder / "mm_projector" / "config.json", mm_projector_type="mlp2x_gelu")
    edit_json(folder / "config.json", image_aspect_ratio="resize", **config)
    torch.manual_seed(0)
    wide, hidden = sizes
    shapes = {"layers.0.weight": (hidden, wide), "layers.0.bias": (hidden,)}
    shapes |= {"layers.2.weight": (hidden, hidden), "layers.2.bias": (hidden,)}
    projector = {name: torch.randn(shape) * 0.2 for name, shape in shapes.items()}
    edit_tensors(folder / "mm_projector" / "model.safetensors", lambda _: projector)
    return folder


def with_intern_vit(folder: pathlib.Path) -> tuple[pathlib.Path, np.lib.npyio.NpzFile]:
    """A VILA1.5 whose tower is the golden InternViT, in the files and keys of VILA1.5-40b; and the golden vectors."""
    golden = np.load(GOLDEN / "modules" / "intern_vit.npz")
    tower = {name.removeprefix("param/"): torch.tensor(golden[name]) for name in golden if name.startswith("param/")}
    save_file(tower, folder / "vision_tower" / "model.safetensors")
    described = json.loads((GOLDEN / "modules" / "intern_vit.json").read_text())["config"]
    (folder / "vision_tower" / "config.json").write_text(json.dumps(described | {"use_flash_attn": True}))
    (folder / "vision_tower" / "preprocessor_config.json").write_text('{"image_processor_type": "InternVisionP"}')
    edit_json(folder / "config.json", mm_vision_select_layer=-1, mm_vision_select_feature="patch")
    return folder, golden
