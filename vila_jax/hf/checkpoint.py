"""A checkpoint on disk or on the Hub: its config, and where every tensor lies. No tensor is read here.

Everything that can be wrong with the files is found before any device memory is touched.
"""

import dataclasses
import json
from typing import Any

from etils import epath

from vila_jax.errors import CheckpointError, ConfigError
from vila_jax.hf.config import ModelConfig, parse_config, text_claims_tie
from vila_jax.hf.hub import locate
from vila_jax.hf.keys import HEAD, canonical
from vila_jax.hf.safetensors import Shard, open_shard

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
      folder: where its files lie.
      config: the parsed config.
      raw_config: contents of `config.json`, for export.
      shards: file name -> its header.
      locations: name of every tensor, as the files spell it -> file name.
      processor: contents of `preprocessor_config.json` and `processor_config.json`, the latter winning; may be empty.
      generation: contents of `generation_config.json`; may be empty.
    """

    folder: epath.Path
    config: ModelConfig
    raw_config: dict[str, Any]
    shards: dict[str, Shard]
    locations: dict[str, str]
    processor: dict[str, Any]
    generation: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """Size of all tensors as stored."""
        return sum(info.nbytes for shard in self.shards.values() for info in shard.tensors.values())


def open_checkpoint(path_or_hub_id: str | epath.PathLike, *, revision: str | None = None) -> Checkpoint:
    """Opens a local folder, or a model on the Hub (downloaded into its cache first).

    Args:
      path_or_hub_id: a folder (`gs://` works) or an id such as `llava-hf/llava-1.5-7b-hf`.
      revision: branch, tag or commit on the Hub.

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
    locations = _read_index(folder)
    shards = {name: open_shard(folder / name) for name in sorted(set(locations.values()))}
    _check_index(folder, locations, shards)
    return Checkpoint(
        folder=folder,
        config=_settle_tying(config, raw_config, locations),
        raw_config=raw_config,
        shards=shards,
        locations=locations,
        processor={
            **(_read_json(folder, "preprocessor_config.json") or {}),
            **(_read_json(folder, "processor_config.json") or {}),
        },
        generation=generation,
    )
