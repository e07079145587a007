"""From one layout of checkpoint to another, tensor by tensor, without a model; and from a model in memory.

    source file -> one tensor (or a piece of it) -> renamed, merged, cast if asked to -> target file

Everything that the source holds is carried over, also what no model has a use for (SigLIP's head, the blocks of a tower
after the feature layer), so that the way back gives the same tensors. The result appears under its name only when it is
complete, and an attempt that was ended goes on after the files that it finished (`vila_jax.hf.staging`).
"""

import dataclasses
import functools
import hashlib
import os
import uuid
from typing import Any

import numpy as np
from etils import epath
from flax import nnx

import vila_jax
from vila_jax.errors import CheckpointError, ConfigError
from vila_jax.hf import image_token
from vila_jax.hf.checkpoint import Checkpoint
from vila_jax.hf.files import name_list
from vila_jax.hf.load import OnTensor, abstract_model, match_tensors
from vila_jax.hf.lora import Lora, merge, open_lora
from vila_jax.hf.out_tensor import CODES, OutTensor, index_file, plan_files, write_file
from vila_jax.hf.staging import Staging, check_target
from vila_jax.hf.targets import LAYOUTS, Target, make_target, rename
from vila_jax.nn.params import dotted

MAX_SHARD_BYTES = 5_000_000_000


@dataclasses.dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
      folder: the checkpoint.
      to: its layout.
      tensors: their number.
      nbytes: of all tensors.
      shards: safetensors files, relative to the folder.
      reused: those among them that an earlier attempt had finished.
      merged: weights that a LoRA changed.
      image_token_id: of a LLaVA that was given an image token.
    """

    folder: epath.Path
    to: str
    tensors: int
    nbytes: int
    shards: tuple[str, ...]
    reused: tuple[str, ...]
    merged: int = 0
    image_token_id: int | None = None


def convert(
    checkpoint: Checkpoint,
    folder: epath.PathLike,
    *,
    to: str,
    lora: epath.PathLike | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
    on_tensor: OnTensor | None = None,
) -> Converted:
    """Writes a checkpoint in another layout, or in its own with a LoRA merged or another dtype.

    Args:
      folder: to write.
      to: `hf` (Hugging Face's LLaVA or LLaVA-NeXT), `vila` (three folders), `llava` (the original single folder).
      lora: folder of a LoRA of the reference's form, merged into the weights.
      dtype: `bfloat16`, `float16` or `float32`; None keeps that of every tensor.
      max_shard_bytes: tensors are spread over several files above this size.
      overwrite: replaces an existing checkpoint as a whole instead of refusing to.
      on_tensor: called after each tensor, for progress.

    Raises:
      ConfigError: the target has no place for something that the model has, or an unknown argument.
      CheckpointError: files are missing, damaged or contradict each other, or `folder` exists.
    """
    adapter = None if lora is None else open_lora(lora, checkpoint.config.vlm)
    target, tensors = _prepare(checkpoint, folder, to, dtype, overwrite)
    merged: dict[str, OutTensor] = {}
    if adapter is not None:
        by_path = _by_path(checkpoint)
        names = {path: tensors[name] for path, name in by_path.items()}
        merged = merge(adapter, names)
        tensors |= {by_path[path]: tensor for path, tensor in merged.items()}
    identity = _identity(checkpoint, target, adapter, (to, dtype, max_shard_bytes))
    staging = Staging(epath.Path(folder), identity)
    written = _write(staging, checkpoint, target, tensors, to, dtype, max_shard_bytes, on_tensor)
    return dataclasses.replace(written, merged=len(merged))


def export(
    checkpoint: Checkpoint,
    state: nnx.State,
    folder: epath.PathLike,
    *,
    to: str,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
    on_tensor: OnTensor | None = None,
) -> Converted:
    """Writes a model in memory: its weights, and everything else as its checkpoint has it.

    What training has not changed comes out bit by bit as it was, if it was loaded in the dtype that it is stored in, or
    in a wider one.

    Args:
      state: of `vila_jax.nn.vlm.VLM`, loaded from `checkpoint`; every array readable from this process.

    The other arguments and the errors are those of `convert`. Nothing is left behind by an export that fails.
    """
    target, tensors = _prepare(checkpoint, folder, to, dtype, overwrite)
    tensors |= _from_state(checkpoint, state, tensors)
    staging = Staging(epath.Path(folder), uuid.uuid4().hex)
    try:
        return _write(staging, checkpoint, target, tensors, to, dtype, max_shard_bytes, on_tensor)
    except BaseException:
        staging.remove()
        raise


def _prepare(
    checkpoint: Checkpoint, folder: epath.PathLike, to: str, dtype: str | None, overwrite: bool
) -> tuple[Target, dict[str, OutTensor]]:
    """The target, and the tensors of the source by their name in it; all that can be wrong is found here."""
    if to not in LAYOUTS:
        raise ConfigError(f"unknown layout {to!r}", where="to", fix=f"Supported: {', '.join(LAYOUTS)}.")
    if dtype is not None and dtype not in CODES:
        raise ConfigError(f"unknown dtype {dtype!r}", where="dtype", fix=f"Supported: {', '.join(CODES)}.")
    check_target(epath.Path(folder), overwrite=overwrite)
    match_tensors(checkpoint, _shapes(abstract_model(checkpoint.config.vlm, np.float32)[1]))
    shards = checkpoint.shards.values()
    tensors = {name: OutTensor.copy(shard, name) for shard in shards for name in shard.tensors}
    return make_target(checkpoint, to, dtype), tensors


def _shapes(state: nnx.State) -> dict[str, tuple[int, ...]]:
    return {dotted(path): tuple(leaf.get_value().shape) for path, leaf in nnx.to_flat_state(state)}


def _by_path(checkpoint: Checkpoint) -> dict[str, str]:
    """Our path -> name in the source, of every tensor that has one, also of those that a model does not hold."""
    table = checkpoint.table
    return {path: name for name in checkpoint.locations if (path := table.from_hf(name)) is not None}


def _from_state(checkpoint: Checkpoint, state: nnx.State, tensors: dict[str, OutTensor]) -> dict[str, OutTensor]:
    """The tensors that the model holds, by their name in the source.

    Raises:
      CheckpointError: the state is of another model.
      ConfigError: positions were resized at load, which no layout remembers.
    """
    arrays: dict[str, Any] = {dotted(path): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}
    expected = _shapes(abstract_model(checkpoint.config.vlm, np.float32)[1])
    found = _shapes(state)
    wrong = [path for path in sorted(expected.keys() | found.keys()) if expected.get(path) != found.get(path)]
    if wrong:
        raise CheckpointError(f"weights do not fit the config: {name_list(wrong)}", where="state")
    sources = match_tensors(checkpoint, expected)
    resized = [source.name for source in sources.values() if source.resize is not None]
    if resized:
        raise ConfigError(
            f"{resized[0]} was resized for tiles of another size, and the files describe the old one",
            where=str(checkpoint.folder),
            fix="Export a model whose tower is loaded at its own size.",
        )
    names = {path: source.name for path, source in sources.items()}
    head = _by_path(checkpoint).get("decoder.head")
    if head is not None and "decoder.head" not in arrays:  # a tied head that the files hold all the same
        arrays["decoder.head"], names["decoder.head"] = arrays["decoder.embedding"], head
    return {name: _of_array(tensors[name], arrays[path]) for path, name in names.items()}


def _of_array(tensor: OutTensor, array: Any) -> OutTensor:
    # Of a copy: an array keeps what is read of it, so that in the end the host would hold the whole model.
    return dataclasses.replace(tensor, read=lambda: np.asarray(array.copy()).reshape(tensor.shape))


def _write(
    staging: Staging,
    checkpoint: Checkpoint,
    target: Target,
    tensors: dict[str, OutTensor],
    to: str,
    dtype: str | None,
    max_shard_bytes: int,
    on_tensor: OnTensor | None,
) -> Converted:
    folders = _by_folder(_renamed(checkpoint, target, tensors, dtype))
    total = sum(tensor.nbytes for group in folders.values() for tensor in group)
    done = 0
    shards: list[str] = []
    small: dict[str, bytes] = {}

    def progress(tensor: OutTensor) -> None:
        nonlocal done
        done += tensor.nbytes
        if on_tensor is not None:
            on_tensor(tensor.name, done, total)

    for prefix, group in sorted(folders.items()):
        files = plan_files(group, max_shard_bytes)
        for file, held in files.items():
            shards.append(prefix + file)
            if not staging.write(prefix + file, functools.partial(write_file, tensors=held, on_tensor=progress)):
                done += sum(tensor.nbytes for tensor in held)
        small |= {prefix + name: data for name, data in index_file(files).items()}
    reused = tuple(staging.reused)
    for name, data in (small | target.files).items():
        staging.write(name, functools.partial(epath.Path.write_bytes, data=data))
    staging.take_place()
    token = target.image_token
    return Converted(
        folder=staging.target,
        to=to,
        tensors=sum(map(len, folders.values())),
        nbytes=total,
        shards=tuple(shards),
        reused=reused,
        image_token_id=None if token is None else token.id,
    )


def _renamed(
    checkpoint: Checkpoint, target: Target, tensors: dict[str, OutTensor], dtype: str | None
) -> dict[str, OutTensor]:
    """The tensors under their names in the target, with its rows and dtype, in the order of the names."""
    table, layout = checkpoint.table, checkpoint.config.layout
    renamed: dict[str, OutTensor] = {}
    for name, tensor in tensors.items():
        new = rename(name, table, layout, target.table, target.layout)
        if new in renamed:
            raise CheckpointError(f"{name} and {renamed[new].source_name} would both be {new}", where="tensors")
        if target.image_token is not None and table.from_hf(name) in image_token.TABLES:
            renamed[new] = image_token.resized(tensor, target.image_token.rows).as_dtype(dtype)
        else:
            renamed[new] = tensor.as_dtype(dtype)
    return dict(sorted(renamed.items()))


def _by_folder(tensors: dict[str, OutTensor]) -> dict[str, list[OutTensor]]:
    """`llm/` and so on -> its tensors under the names that they have inside; everything under `` for one folder."""
    folders: dict[str, list[OutTensor]] = {}
    for location, tensor in tensors.items():
        folder, slash, name = location.rpartition("/")
        folders.setdefault(folder + slash, []).append(dataclasses.replace(tensor, name=name))
    return folders


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
