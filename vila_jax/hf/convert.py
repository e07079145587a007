"""From one layout of checkpoint to another, tensor by tensor, without a model.

    source file -> one tensor (or a piece of it) -> renamed, merged, cast if asked to -> target file

Everything that the source holds is carried over, also what no model has a use for (SigLIP's head, the blocks of a tower
after the feature layer), so that the way back gives the same tensors. The result appears under its name only when it is
complete, and an attempt that was ended goes on after the files that it finished (`vila_jax.hf.staging`).
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from etils import epath

import vila_jax
from vila_jax.errors import CheckpointError
from vila_jax.hf.checkpoint import Checkpoint
from vila_jax.hf.load import OnTensor
from vila_jax.hf.lora import Lora, merge, open_lora
from vila_jax.hf.out_tensor import OutTensor
from vila_jax.hf.staging import Staging
from vila_jax.hf.targets import Target
from vila_jax.hf.writing import (
    MAX_SHARD_BYTES,
    Written,
    check_request,
    in_target,
    names_by_path,
    target_of,
    write_checkpoint,
)


def convert(
    checkpoint: Checkpoint,
    folder: epath.PathLike,
    *,
    to: str,
    lora: epath.PathLike | None = None,
    dtype: str | None = None,
    style: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
    on_tensor: OnTensor | None = None,
) -> Written:
    """Writes a checkpoint in another layout, or in its own with a LoRA merged or another dtype.

    Args:
      folder: to write.
      to: `hf` (Hugging Face's LLaVA or LLaVA-NeXT), `vila` (three folders), `llava` (the original single folder).
      lora: folder of a LoRA of the reference's form, merged into the weights.
      dtype: `bfloat16`, `float16` or `float32`; None keeps that of every tensor.
      style: name of the conversation style that a VILA gets as its chat template in `hf`; by default the one that the
        checkpoint asks for.
      max_shard_bytes: tensors are spread over several files above this size.
      overwrite: replaces an existing checkpoint as a whole instead of refusing to.
      on_tensor: called after each tensor, for progress.

    Raises:
      ConfigError: the target has no place for something that the model has, or an unknown argument.
      CheckpointError: files are missing, damaged or contradict each other, or `folder` exists or holds the source.
    """
    _refuse_own_source(folder, [checkpoint.folder, *([] if lora is None else [lora])])
    check_request(folder, to, dtype, overwrite)
    adapter = None if lora is None else open_lora(lora, checkpoint.config.vlm)
    target, tensors = target_of(checkpoint, to, dtype, style)
    merged: dict[str, OutTensor] = {}
    if adapter is not None:
        by_path = names_by_path(checkpoint)
        merged = merge(adapter, {path: tensors[name] for path, name in by_path.items()})
        tensors |= {by_path[path]: tensor for path, tensor in merged.items()}
    identity = _identity(checkpoint, target, adapter, (to, dtype, max_shard_bytes))
    with Staging(folder, identity, overwrite=overwrite) as staging:
        placed = in_target(checkpoint, target, tensors, dtype)
        written = write_checkpoint(staging, target, placed, max_shard_bytes=max_shard_bytes, on_tensor=on_tensor)
    return dataclasses.replace(written, merged=len(merged))


def _refuse_own_source(folder: epath.PathLike, sources: Iterable[epath.PathLike]) -> None:
    """Replacing what is read would end in losing it, should the replacement be ended on its way."""
    if "://" in str(folder):
        return
    target = pathlib.Path(folder).resolve()
    for source in sources:
        if "://" not in str(source) and pathlib.Path(source).resolve().is_relative_to(target):
            what = "the checkpoint cannot be written over what it is made from"
            raise CheckpointError(what, where=str(folder), fix="Choose another folder.")


def _identity(checkpoint: Checkpoint, target: Target, adapter: Lora | None, options: tuple[Any, ...]) -> str:
    """A digest of what the files are made from: tensors by their headers, sizes and times, and the small files."""
    shards = {str(shard.path): shard for shard in checkpoint.shards.values()}
    facts: list[Any] = [vila_jax.__version__, options, checkpoint.config]
    if adapter is not None:
        held = [pair[0] for pair in adapter.pairs.values()] + [whole[0] for whole in adapter.whole.values()]
        shards |= {str(shard.path): shard for shard in held}
        facts += [adapter.scale, adapter.rank]
    facts += [(_stamp(shard.path), sorted(shard.tensors.items())) for shard in shards.values()]
    facts += [(name, hashlib.sha256(data).hexdigest()) for name, data in target.files.items()]
    return hashlib.sha256("\0".join(map(repr, facts)).encode()).hexdigest()


def _stamp(path: epath.Path) -> tuple[str, int, int]:
    """Name, size and time of change of a file."""
    if "://" in str(path):
        stat = path.stat()
        return str(path), stat.length, int(stat.mtime)
    local = os.stat(path)
    return os.path.realpath(path), local.st_size, local.st_mtime_ns
