"""A checkpoint on disk or on the Hub: its config, and where every tensor lies. No tensor is read here.

Everything that can be wrong with the files is found before any device memory is touched.
"""

import dataclasses
from typing import Any

from etils import epath

from vila_jax.errors import ConfigError
from vila_jax.hf.config import ModelConfig, parse_config
from vila_jax.hf.files import read_json
from vila_jax.hf.hub import locate
from vila_jax.hf.keys import LLAVA, KeyTable, key_table
from vila_jax.hf.layouts import Pieces, gather
from vila_jax.hf.llava_config import text_claims_tie
from vila_jax.hf.safetensors import Shard


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
      name: the path or id by which it was opened, which tells of some models how they are spoken to.
      folder: where its files lie.
      config: the parsed config.
      raw_config: contents of `config.json`, for export; VILA's is completed with the configs of its parts.
      shards: file name -> its header; a VILA part's file, and the tensors in it, are called `llm/NAME` and so on.
      locations: name of every tensor, as the files spell it -> file name.
      preprocessor: contents of `preprocessor_config.json` (pixels); empty when there is none, as the next two.
      processor: contents of `processor_config.json` (how pictures and prompts meet).
      generation: contents of `generation_config.json`.
    """

    name: str
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

    @property
    def table(self) -> KeyTable:
        """The names of its tensors and ours."""
        return key_table(self.config.layout, self.config.vlm)

    @property
    def tokenizer_folder(self) -> epath.Path:
        """Where its tokenizer lies."""
        return self.folder / "llm" if self.config.layout == "folders" else self.folder


def open_checkpoint(
    path_or_hub_id: str | epath.PathLike,
    *,
    revision: str | None = None,
    weights: bool = True,
    era: str | None = None,
) -> Checkpoint:
    """Opens a local folder, or a model on the Hub (downloaded into its cache first).

    Args:
      path_or_hub_id: a folder (`gs://` works) or an id such as `llava-hf/llava-1.5-7b-hf`.
      revision: branch, tag or commit on the Hub.
      weights: False leaves the files of the weights alone, so that a folder without them can be described.
      era: `v1`, `vila1.5` or `nvila` for a VILA checkpoint that does not show its own.

    Raises:
      ConfigError: `config.json` is missing, is not JSON, or asks for something that is not supported.
      CheckpointError: files are missing, damaged, unsafe, or contradict each other.
      HubError: there is no such model, or it cannot be fetched.
    """
    folder = locate(path_or_hub_id, revision=revision)
    raw_config = read_json(folder, "config.json")
    if raw_config is None:
        raise ConfigError("there is no config.json", where=str(folder), fix="Give the folder of a whole checkpoint.")
    pieces = gather(folder, raw_config, weights=weights)
    config = parse_config(pieces.config, pieces.generation, preprocessor=pieces.preprocessor, era=era)
    return Checkpoint(
        name=str(path_or_hub_id),
        folder=folder,
        config=_settle_tying(config, pieces) if weights else config,
        raw_config=pieces.config,
        shards=pieces.shards,
        locations={name: file for file, shard in pieces.shards.items() for name in shard.tensors},
        preprocessor=pieces.preprocessor,
        processor=read_json(folder, "processor_config.json") or {},
        generation=pieces.generation,
    )


def _settle_tying(config: ModelConfig, pieces: Pieces) -> ModelConfig:
    """Ties the head when only `text_config` asks for it and the files hold none.

    transformers before version 5 read that key for every model, later ones ignore it for `llava_next`; whether a head
    was written shows by which of the two a checkpoint was meant.
    """
    decoder = config.vlm.decoder
    if config.layout != "llava" or decoder.tie_embeddings or not text_claims_tie(pieces.config):
        return config
    if any(LLAVA.from_hf(name) == "decoder.head" for shard in pieces.shards.values() for name in shard.tensors):
        return config
    decoder = dataclasses.replace(decoder, tie_embeddings=True)
    return dataclasses.replace(config, vlm=dataclasses.replace(config.vlm, decoder=decoder))
