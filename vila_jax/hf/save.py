"""Writing a model in the Hugging Face layout, from the same key table that reads it.

A model holds only what it uses, while transformers' classes also want the tower's blocks after the feature layer, the
norm behind them and SigLIP's pooling head. Rather than inventing weights for them, the exported config describes the
tower that there is: `num_hidden_layers` ends at the feature layer, which is then the last one (-1), and SigLIP's
`vision_use_head` is false. Only the final norm, which LLaVA never reads, is written as the identity.
"""

import contextlib
import copy
import json
import re
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from etils import epath
from flax import nnx
from jax.typing import DTypeLike

from vila_jax.errors import CheckpointError, ConfigError
from vila_jax.hf.config import parse_config
from vila_jax.hf.files import INDEX, SINGLE, name_list
from vila_jax.hf.keys import LLAVA
from vila_jax.hf.load import abstract_model
from vila_jax.hf.staging import check_target
from vila_jax.hf.vision_config import LLAVA_TOWER
from vila_jax.nn.config import VLMConfig
from vila_jax.nn.params import dotted

_CLASSES = {"llava": "LlavaForConditionalGeneration", "llava_next": "LlavaNextForConditionalGeneration"}
_FINAL_NORM = "vision_tower.vision_model.post_layernorm"
_FILE_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*")
Tensors = dict[str, jax.Array | np.ndarray]


def save_pretrained(
    folder: epath.PathLike,
    config: Mapping[str, Any],
    state: nnx.State,
    *,
    dtype: DTypeLike | None = None,
    extra_files: Mapping[str, str | bytes] | None = None,
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
) -> None:
    """Writes safetensors, `config.json` and `extra_files` so that transformers' own class loads them.

    The folder appears under its name only when it is complete. (An object store cannot rename at once: there
    `config.json` is the last file to arrive.)

    Args:
      folder: the checkpoint to write.
      config: the `config.json` that `state` was built from.
      state: of `vila_jax.nn.vlm.VLM`, every array readable from this process.
      dtype: to store; by default the dtype of the state.
      extra_files: name -> contents of tokenizer, processor and generation files.
      max_shard_bytes: tensors are spread over several files above this size.
      overwrite: replaces an existing checkpoint as a whole instead of refusing to.

    Raises:
      ConfigError: the config is not supported.
      CheckpointError: the folder exists, the state does not fit the config, or an extra file's name is not plain.
    """
    folder = epath.Path(folder)
    check_target(folder, overwrite=overwrite)
    vlm = parse_config(config).vlm
    tensors = _hf_tensors(state, vlm)
    exported = export_config(config, vlm, dtype or next(iter(tensors.values())).dtype)
    with _appears_at_once(folder) as staging:
        _write_tensors(staging, tensors, dtype, max_shard_bytes)
        for name, contents in (extra_files or {}).items():
            if not _FILE_NAME.fullmatch(name):
                raise CheckpointError(f"{name!r} is not a plain file name", where="extra_files")
            (staging / name).write_bytes(contents.encode() if isinstance(contents, str) else contents)
        (staging / "config.json").write_text(json.dumps(exported, indent=2, sort_keys=True) + "\n")


def export_config(config: Mapping[str, Any], vlm: VLMConfig, dtype: DTypeLike) -> dict[str, Any]:
    """The config of the model as exported: see the top of this file."""
    exported = copy.deepcopy(dict(config))
    depth = vlm.vision_depth
    if depth == 0:
        raise ConfigError("a tower without blocks cannot be exported", where="config.json: vision_feature_layer")
    vision = dict(exported.get("vision_config") or LLAVA_TOWER)
    vision["num_hidden_layers"] = depth
    if vlm.vision.kind == "siglip":
        vision["vision_use_head"] = False
    layers = [layer - (depth + 1) for layer in vlm.feature_layers]
    exported["vision_config"] = vision
    exported["vision_feature_layer"] = layers if isinstance(config.get("vision_feature_layer"), list) else layers[0]
    tied = vlm.decoder.tie_embeddings
    exported["tie_word_embeddings"] = tied
    exported["text_config"] = dict(exported.get("text_config") or {"model_type": "llama"}) | {
        "tie_word_embeddings": tied
    }
    exported["architectures"] = [_CLASSES[exported["model_type"]]]
    exported.pop("torch_dtype", None)
    exported["dtype"] = np.dtype(dtype).name
    return exported


def _hf_tensors(state: nnx.State, vlm: VLMConfig) -> Tensors:
    """The state under canonical checkpoint names, with what transformers wants besides."""
    _, abstract = abstract_model(vlm, np.float32)
    expected = {dotted(path): leaf.get_value().shape for path, leaf in nnx.to_flat_state(abstract)}
    arrays = {dotted(path): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}
    wrong = [path for path in sorted(expected.keys() | arrays.keys()) if _shape(arrays, path) != expected.get(path)]
    if wrong:
        raise CheckpointError(f"weights do not fit the config: {name_list(wrong)}", where="state")
    tensors: Tensors = {str(LLAVA.to_hf(path)): array for path, array in arrays.items()}
    width, dtype = vlm.vision.hidden_size, next(iter(arrays.values())).dtype
    tensors[f"{_FINAL_NORM}.weight"] = np.ones(width, dtype)
    tensors[f"{_FINAL_NORM}.bias"] = np.zeros(width, dtype)
    return dict(sorted(tensors.items()))


def _shape(arrays: Mapping[str, jax.Array], path: str) -> tuple[int, ...] | None:
    return arrays[path].shape if path in arrays else None


def _write_tensors(folder: epath.Path, tensors: Tensors, dtype: DTypeLike | None, max_shard_bytes: int) -> None:
    """One file, or numbered ones and their index; only one of them is in host memory at a time."""
    shards: list[list[str]] = [[]]
    sizes = [0]
    for name, array in tensors.items():
        nbytes = array.size * np.dtype(dtype or array.dtype).itemsize
        if shards[-1] and sizes[-1] + nbytes > max_shard_bytes:
            shards.append([])
            sizes.append(0)
        shards[-1].append(name)
        sizes[-1] += nbytes
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        host = {name: np.ascontiguousarray(np.asarray(tensors[name]), dtype) for name in names}
        (folder / file).write_bytes(safetensors.numpy.save(host, metadata={"format": "pt"}))
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


@contextlib.contextmanager
def _appears_at_once(folder: epath.Path) -> Iterator[epath.Path]:
    """A folder beside the target that takes its name when the block ends well, and is removed when it does not."""
    staging = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.partial"
    staging.mkdir(parents=True)
    try:
        yield staging
        if folder.exists():
            old = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.replaced"
            folder.rename(old)
            staging.rename(folder)
            old.rmtree()
        else:
            staging.rename(folder)
    except BaseException:
        staging.rmtree(missing_ok=True)
        raise
