"""What lies where in each layout of checkpoint, gathered from its folders before anything of it is parsed.

    llava     ./config.json, generation_config.json, preprocessor_config.json, *.safetensors
    v1        the same files; the tower has no config, its tensors tell its sizes
    folders   ./config.json
              ./llm/           config.json, generation_config.json, *.safetensors, tokenizer
              ./vision_tower/  config.json, preprocessor_config.json, *.safetensors
              ./mm_projector/  config.json, *.safetensors
              ./token_scorer/  *.safetensors, where this library has added one

The config of a part is the one in its folder; the copy that VILA's root config may hold is used only where there is
none. A tower that is not there is fetched by the name under which the config knows it, from the Hub alone: a path in a
config belongs to whoever trained the model.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath

from vila_jax.errors import CheckpointError, ConfigError
from vila_jax.hf.files import Shards, open_shards, read_json, under
from vila_jax.hf.hub import fetch, is_hub_id
from vila_jax.hf.vila_config import CLIP_336, CONFIG_KEYS, vila_layout
from vila_jax.hf.vision_config import clip_config

_V1_TOWER = "model.vision_tower.vision_tower."


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The contents of a checkpoint's JSON files, and the headers of its weights."""

    config: dict[str, Any]
    generation: dict[str, Any]
    preprocessor: dict[str, Any]
    shards: Shards


def gather(folder: epath.Path, config: dict[str, Any], *, weights: bool) -> Pieces:
    """Reads everything of a checkpoint but its tensors.

    Args:
      config: contents of its `config.json`.
      weights: False leaves the files of the weights alone, and the Hub.

    Raises:
      ConfigError: a file is not JSON, or the weights are quantised.
      CheckpointError: files are missing, damaged, unsafe, or contradict each other.
      HubError: a tower that only the Hub has cannot be fetched.
    """
    layout = vila_layout(config)
    if layout == "folders" or all((folder / part).is_dir() for part in ("llm", "mm_projector")):
        return _three_folders(folder, config, weights)
    if layout == "v1":
        return _one_folder(folder, config, weights)
    return _pieces(folder, config, open_shards(folder) if weights else {})


def _pieces(folder: epath.Path, config: dict[str, Any], shards: Shards) -> Pieces:
    """Those of a folder that holds a whole model."""
    generation, preprocessor = (read_json(folder, f"{kind}_config.json") for kind in ("generation", "preprocessor"))
    return Pieces(config, generation or {}, preprocessor or {}, shards)


def _one_folder(folder: epath.Path, config: dict[str, Any], weights: bool) -> Pieces:
    """VILA v1: the tower's config is told by the shapes of its tensors."""
    if not weights:
        return _pieces(folder, config, {})
    shards = open_shards(folder)
    shapes = {name: info.shape for shard in shards.values() for name, info in shard.tensors.items()}
    tower = {name.removeprefix(_V1_TOWER): shape for name, shape in shapes.items() if name.startswith(_V1_TOWER)}
    if tower:
        return _pieces(folder, config | {"vision_config": clip_config(tower, str(folder))}, shards)
    config_of_tower, _, fetched = _tower_by_name(config.get("mm_vision_tower"), folder)
    return _pieces(folder, config | {"vision_config": config_of_tower}, shards | under(_V1_TOWER, fetched))


def _three_folders(folder: epath.Path, config: dict[str, Any], weights: bool) -> Pieces:
    shards: Shards = {}
    preprocessor: dict[str, Any] = {}
    for part, key in CONFIG_KEYS.items():
        own = folder / part
        if weights and not own.is_dir():
            if part != "vision_tower":
                raise _no_part(folder, part)
            name = config[key] if isinstance(config.get(key), str) else config.get("mm_vision_tower")
            described, preprocessor, found = _tower_by_name(name, folder)
        else:
            described = read_json(own, "config.json") or config.get(key) or {}
            found = _part_shards(folder, part, described) if weights else {}
        config = config | {key: described}
        shards |= under(f"{part}/", found)
    if weights and (scorer := folder / "token_scorer").is_dir():
        shards |= under("token_scorer/", open_shards(scorer, folder))
    preprocessor = preprocessor or read_json(folder / "vision_tower", "preprocessor_config.json") or {}
    return Pieces(config, read_json(folder / "llm", "generation_config.json") or {}, preprocessor, shards)


def _part_shards(folder: epath.Path, part: str, config: Any) -> Shards:
    """Headers of the weights of a part."""
    if isinstance(config, Mapping) and config.get("mm_projector_type") == "identity":
        return {}
    files = sorted(file.name for file in (folder / part).iterdir())
    packed = [file for file in files if "awq" in file.lower()]
    if packed and not any(file.endswith(".safetensors") for file in files):
        raise ConfigError(
            f"these weights are packed to a few bits by AWQ ({packed[0]})",
            where=str(folder / part),
            fix="Supported: the repository of the same name without AWQ, with weights of 16 or 32 bits.",
        )
    return open_shards(folder / part, folder)


def _no_part(folder: epath.Path, part: str) -> Exception:
    if part == "llm" and (folder / "fp8_llm").is_dir():
        return ConfigError(
            "the language model is there in 8 bits alone (fp8_llm)",
            where=str(folder),
            fix="Supported: checkpoints with a folder `llm`, with weights of 16 or 32 bits.",
        )
    return CheckpointError(f"there is no folder {part}", where=str(folder), fix="Download the checkpoint again.")


def _tower_by_name(name: Any, folder: epath.Path) -> tuple[dict[str, Any], dict[str, Any], Shards]:
    """Config, `preprocessor_config.json` and headers of a tower that the checkpoint only names."""
    if not isinstance(name, str) or not is_hub_id(name):
        raise CheckpointError(
            f"the vision tower is not here, and {name!r} is not the name of one on the Hugging Face Hub",
            where=str(folder),
            fix=f"Put it there as `vision_tower`, or name it, such as {CLIP_336}.",
        )
    source = fetch(name)
    config = read_json(source, "config.json") or {}
    inner = config.get("vision_config")
    if isinstance(inner, dict):  # a whole CLIP or SigLIP, of which this is one half
        config = {"model_type": f"{config.get('model_type')}_vision_model"} | inner
    return config, read_json(source, "preprocessor_config.json") or {}, open_shards(source)
