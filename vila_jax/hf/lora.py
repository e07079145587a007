"""A LoRA folder of the reference's form, merged into the weights that it was trained on: W + scale * B A.

    adapter_config.json             rank and scale
    adapter_model.safetensors       base_model.model.NAME.lora_A.weight [r, in], ...lora_B.weight [out, r]
    non_lora_trainables.safetensors whole weights that were trained beside them, such as the projector's; may be absent

`NAME` is that of the module in the training code, whose prefixes differ between generations: `model.layers.0` and
`llm.model.layers.0` are the same. Sources: peft's `LoraConfig`; VILA `llava/model/builder.py`.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from etils import epath

from vila_jax.errors import CheckpointError, ConfigError
from vila_jax.hf.files import name_list, read_json
from vila_jax.hf.keys import LLAVA, key_table
from vila_jax.hf.out_tensor import OutTensor
from vila_jax.hf.safetensors import Shard, open_shard
from vila_jax.hf.section import Section
from vila_jax.nn.config import VLMConfig

ADAPTER, TRAINABLES = "adapter_model", "non_lora_trainables"
_CONVERT = (
    "Convert it once, where torch is installed and if you trust its origin: "
    'python -c "import torch; from safetensors.torch import save_file; '
    "t = torch.load('{name}.bin', map_location='cpu', weights_only=True); "
    "save_file({{k: v.contiguous() for k, v in t.items()}}, '{name}.safetensors')\""
)


@dataclasses.dataclass(frozen=True)
class Lora:
    """An opened LoRA folder.

    Attributes:
      folder: where it lies.
      scale: what `B A` is multiplied with.
      rank: of every pair.
      pairs: our path of a weight -> (file, name of A, name of B).
      whole: our path of a weight -> (file, name) of the tensor that takes its place.
    """

    folder: epath.Path
    scale: float
    rank: int
    pairs: dict[str, tuple[Shard, str, str]]
    whole: dict[str, tuple[Shard, str]]


def open_lora(folder: epath.PathLike, config: VLMConfig) -> Lora:
    """Opens a LoRA folder for a model of this config. No tensor is read.

    Raises:
      ConfigError: there is no `adapter_config.json`, or it asks for more than plain LoRA.
      CheckpointError: the tensors are missing, pickles, not in pairs, or not of this model.
    """
    folder = epath.Path(folder)
    settings = read_json(folder, "adapter_config.json")
    if settings is None:
        raise ConfigError("there is no adapter_config.json", where=str(folder), fix="Give the folder of a LoRA run.")
    rank, scale = _rank_and_scale(Section(settings, "adapter_config.json"))
    adapter = _open(folder, ADAPTER)
    if adapter is None:
        raise CheckpointError(f"there is no {ADAPTER}.safetensors", where=str(folder))
    trainables = _open(folder, TRAINABLES)
    whole = {} if trainables is None else _paths(trainables, {name: name for name in trainables.tensors}, config)
    return Lora(
        folder=folder,
        scale=scale,
        rank=rank,
        pairs=_pairs(adapter, config),
        whole={path: (trainables, name) for path, name in whole.items() if trainables is not None},
    )


def merge(lora: Lora, tensors: Mapping[str, OutTensor]) -> dict[str, OutTensor]:
    """The tensors (by our path) that the adapter changes, changed.

    Raises:
      CheckpointError: the model has no such weights, or they are of other shapes.
    """
    unknown = [path for path in (*lora.pairs, *lora.whole) if path not in tensors]
    if unknown:
        raise CheckpointError(f"the model has no such weights: {name_list(unknown)}", where=str(lora.folder))
    merged = {}
    for path, (shard, name) in lora.whole.items():
        _check_shape(shard, name, tensors[path].shape)
        merged[path] = dataclasses.replace(tensors[path], read=_Whole(shard, name))
    for path, (shard, down, up) in lora.pairs.items():
        base = merged.get(path, tensors[path])
        if len(base.shape) != 2:
            raise CheckpointError(f"{path} is no matrix", where=str(lora.folder))
        _check_shape(shard, down, (lora.rank, base.shape[1]))
        _check_shape(shard, up, (base.shape[0], lora.rank))
        merged[path] = base.edited(_Product(shard, down, up, lora.scale))
    return merged


def _check_shape(shard: Shard, name: str, expected: tuple[int, ...]) -> None:
    found = shard.tensors[name].shape
    if found != expected:
        what = f"expected shape {list(expected)} for {name}, got {list(found)}"
        raise CheckpointError(what, where=str(shard.path), fix="Check that the adapter was trained on this model.")
    shard.numpy_dtype(name)


@dataclasses.dataclass(frozen=True)
class _Whole:
    shard: Shard
    name: str

    def __call__(self) -> np.ndarray:
        return self.shard.read(self.name)


@dataclasses.dataclass(frozen=True)
class _Product:
    """Adds the product of a pair, in float32."""

    shard: Shard
    down: str
    up: str
    scale: float

    def __call__(self, weight: np.ndarray) -> np.ndarray:
        down, up = (self.shard.read(name).astype(np.float32) for name in (self.down, self.up))
        product = up @ down
        product *= np.float32(self.scale)
        product += weight
        return product


def _rank_and_scale(section: Section) -> tuple[int, float]:
    """Rank, and `alpha / r` (or `alpha / sqrt(r)`)."""
    if section.get("peft_type", "LORA") != "LORA":
        raise section.error("peft_type", "'LORA'")
    for key in ("use_dora", "fan_in_fan_out", "lora_bias", "use_qalora"):
        section.fixed(key, False)
    section.fixed("bias", "none")
    for key in ("modules_to_save", "trainable_token_indices", "target_parameters", "layer_replication"):
        section.fixed(key, [])
    for key in ("rank_pattern", "alpha_pattern", "alora_invocation_tokens"):
        section.fixed(key, {})
    rank = section.integer("r", 8)
    alpha = section.number("lora_alpha", 8.0)
    return rank, alpha / (math.sqrt(rank) if section.flag("use_rslora", False) else rank)


def _open(folder: epath.Path, name: str) -> Shard | None:
    if (folder / f"{name}.safetensors").exists():
        return open_shard(folder / f"{name}.safetensors")
    if (folder / f"{name}.bin").exists():
        raise CheckpointError(
            "this is a pickle, which can run code when it is opened",
            where=str(folder / f"{name}.bin"),
            fix=_CONVERT.format(name=name),
        )
    return None


def _pairs(adapter: Shard, config: VLMConfig) -> dict[str, tuple[Shard, str, str]]:
    halves: dict[str, dict[str, str]] = {"A": {}, "B": {}}
    for name in adapter.tensors:
        module, found, end = name.partition(".lora_")
        if not found or end not in ("A.weight", "B.weight"):
            raise CheckpointError(
                f"{name} is neither `….lora_A.weight` nor `….lora_B.weight`",
                where=str(adapter.path),
                fix="Supported: plain LoRA of linear layers, without DoRA, biases, embeddings or modules_to_save.",
            )
        halves[end[0]][module] = name
    alone = sorted(halves["A"].keys() ^ halves["B"].keys())
    if alone or not halves["A"]:
        what = f"no pair of lora_A and lora_B for {name_list(alone)}" if alone else "it holds no tensors"
        raise CheckpointError(what, where=str(adapter.path), fix="Check that the file is complete.")
    modules = _paths(adapter, {f"{module}.weight": module for module in halves["A"]}, config)
    return {path: (adapter, halves["A"][module], halves["B"][module]) for path, module in modules.items()}


def _paths(shard: Shard, names: Mapping[str, str], config: VLMConfig) -> dict[str, str]:
    """Our path of every key of `names` -> its value."""
    paths: dict[str, str] = {}
    unknown = []
    for name, value in names.items():
        path = _path(name, config)
        if path is None or path in paths:
            unknown.append(name)
        else:
            paths[path] = value
    if unknown:
        raise CheckpointError(
            f"tensors that belong to no weight of the model, or to one twice: {name_list(unknown)}",
            where=str(shard.path),
            fix="Check that the adapter was trained on this model.",
        )
    return paths


def _path(name: str, config: VLMConfig) -> str | None:
    """Our path of a weight as the training code calls it, however many modules are wrapped around the model."""
    name = name.removeprefix("base_model.")
    while True:
        folders = name.replace("vision_tower.vision_tower.", "vision_tower/", 1) if "/" not in name else name
        for part in ("llm", "mm_projector"):
            folders = f"{part}/{name[len(part) + 1 :]}" if name.startswith(f"{part}.") else folders
        candidates = (
            key_table("folders", config).from_hf(folders),
            key_table("v1", config).from_hf(name),
            key_table("v1", config).from_hf(f"model.{name}"),
            LLAVA.from_hf(name),
        )
        path = next((path for path in candidates if path is not None), None)
        if path is not None or not name.startswith("model."):
            return path
        name = name.removeprefix("model.")
