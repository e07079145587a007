"""A checkpoint with a token scorer: every other tensor is copied bit by bit, and the layout stays."""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from vila_jax.hf.checkpoint import Checkpoint
from vila_jax.hf.convert import refuse_own_source
from vila_jax.hf.out_tensor import OutTensor, json_bytes
from vila_jax.hf.safetensors import DTYPES
from vila_jax.hf.staging import Staging
from vila_jax.hf.targets import LAYOUTS
from vila_jax.hf.writing import MAX_SHARD_BYTES, Written, check_request, names_by_path, target_of, write_checkpoint


def add_scorer(
    checkpoint: Checkpoint, scorer: Mapping[str, Any], folder: epath.PathLike, *, overwrite: bool = False
) -> Written:
    """Writes a checkpoint anew with a token scorer, in place of the one that it may have.

    Its weights are stored in the dtype of the embedding table, and `config.json` gets the key `token_scorer`, which
    other readers of the layout pass over.

    Args:
      scorer: arrays of a `vila_jax.nn.scorer.Scorer` by dotted path, such as `fc1.weight`.
      folder: to write.
      overwrite: replaces an existing checkpoint as a whole instead of refusing to.

    Raises:
      ConfigError: a dtype that cannot be stored.
      CheckpointError: files are missing, damaged or contradict each other, or `folder` exists or holds the source.
    """
    to = next(name for name, layout in LAYOUTS.items() if layout == checkpoint.config.layout)
    refuse_own_source(folder, [checkpoint.folder])
    check_request(folder, to, None, overwrite)
    target, tensors = target_of(checkpoint, to, None, None)
    by_path = names_by_path(checkpoint)
    tensors = {name: t for name, t in tensors.items() if not (target.table.from_hf(name) or "").startswith("scorer.")}
    dtype = DTYPES[tensors[by_path["decoder.embedding"]].dtype].name
    for path, array in scorer.items():
        name = str(target.table.to_hf(f"scorer.{path}"))
        tensors[name] = OutTensor.of_array(name, array).as_dtype(dtype)
    config = json.loads(target.files["config.json"])
    config["token_scorer"] = {"hidden_size": int(scorer["fc1.weight"].shape[0])}
    target.files["config.json"] = json_bytes(config)
    with Staging(folder, None, overwrite=overwrite) as staging:
        return write_checkpoint(staging, target, tensors, max_shard_bytes=MAX_SHARD_BYTES, on_tensor=None)
