"""What converting and exporting share: tensors and small files, into the folder of a checkpoint."""

import dataclasses
import functools
from collections.abc import Mapping

from etils import epath

from vila_jax.errors import CheckpointError, ConfigError
from vila_jax.hf import image_token
from vila_jax.hf.checkpoint import Checkpoint
from vila_jax.hf.load import OnTensor, match_tensors, weight_shapes
from vila_jax.hf.out_tensor import CODES, OutTensor, index_file, plan_files, write_file
from vila_jax.hf.staging import Staging, check_target
from vila_jax.hf.targets import LAYOUTS, Target, make_target, rename

MAX_SHARD_BYTES = 5_000_000_000


@dataclasses.dataclass(frozen=True)
class Written:
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
      style: name of the conversation style of a LLaVA that was given a chat template.
    """

    folder: epath.Path
    to: str
    tensors: int
    nbytes: int
    shards: tuple[str, ...]
    reused: tuple[str, ...]
    merged: int = 0
    image_token_id: int | None = None
    style: str | None = None


def check_request(folder: epath.PathLike, to: str, dtype: str | None, overwrite: bool) -> None:
    """What can be wrong before anything of the source is looked at.

    Raises:
      ConfigError: an unknown layout or dtype.
      CheckpointError: the folder exists, or is being written.
    """
    if to not in LAYOUTS:
        raise ConfigError(f"unknown layout {to!r}", where="to", fix=f"Supported: {', '.join(LAYOUTS)}.")
    if dtype is not None and dtype not in CODES:
        raise ConfigError(f"unknown dtype {dtype!r}", where="dtype", fix=f"Supported: {', '.join(CODES)}.")
    check_target(folder, overwrite=overwrite)


def target_of(
    checkpoint: Checkpoint, to: str, dtype: str | None, style: str | None
) -> tuple[Target, dict[str, OutTensor]]:
    """The target, and the tensors of the source by their name in it; all that can be wrong is found here.

    Args:
      to, dtype, style: see `vila_jax.hf.convert.convert`.

    Raises:
      ConfigError: the target has no place for something that the model has.
      CheckpointError: files are missing, damaged or contradict each other.
    """
    match_tensors(checkpoint, weight_shapes(checkpoint.config.vlm))
    shards = checkpoint.shards.values()
    tensors = {name: OutTensor.copy(shard, name) for shard in shards for name in shard.tensors}
    return make_target(checkpoint, to, dtype, style), tensors


def names_by_path(checkpoint: Checkpoint) -> dict[str, str]:
    """Our path -> name in the source, of every tensor that has one, also of those that a model does not hold."""
    table = checkpoint.table
    return {path: name for name in checkpoint.locations if (path := table.from_hf(name)) is not None}


def in_target(
    checkpoint: Checkpoint, target: Target, tensors: dict[str, OutTensor], dtype: str | None
) -> dict[str, OutTensor]:
    """The tensors under their names in the target, with its rows and dtype."""
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
    return renamed


def write_checkpoint(
    staging: Staging,
    target: Target,
    tensors: Mapping[str, OutTensor],
    *,
    max_shard_bytes: int,
    on_tensor: OnTensor | None,
) -> Written:
    """Writes everything, shard by shard and the small files last; then the folder takes its place.

    Args:
      staging: entered.
      tensors: by their name in the target, with the folder before the last slash.
      max_shard_bytes: tensors are spread over several files above this size.
      on_tensor: called after each tensor.

    Raises:
      CheckpointError: a tensor cannot be read or a file cannot be written.
    """
    folders = _by_folder(tensors)
    total = sum(tensor.nbytes for tensor in tensors.values())
    done = 0
    shards: list[str] = []
    small: dict[str, bytes] = {}

    def progress(tensor: OutTensor) -> None:
        nonlocal done
        done += tensor.nbytes
        if on_tensor is not None:
            on_tensor(tensor.name, done, total)

    for prefix, group in sorted(folders.items()):
        planned = plan_files(group, max_shard_bytes)
        for file, held in planned.items():
            shards.append(prefix + file)
            if not staging.write(prefix + file, functools.partial(write_file, tensors=held, on_tensor=progress)):
                done += sum(tensor.nbytes for tensor in held)
        small |= {prefix + name: data for name, data in index_file(planned).items()}
    reused = tuple(staging.reused)
    for name, data in (small | target.files).items():
        staging.write(name, functools.partial(epath.Path.write_bytes, data=data))
    staging.take_place()
    return Written(
        folder=staging.target,
        to=next(name for name, layout in LAYOUTS.items() if layout == target.layout),
        tensors=len(tensors),
        nbytes=total,
        shards=tuple(shards),
        reused=reused,
        image_token_id=target.image_token_id,
        style=target.style,
    )


def _by_folder(tensors: Mapping[str, OutTensor]) -> dict[str, list[OutTensor]]:
    """`llm/` and so on -> its tensors under the names that they have inside; everything under `` for one folder."""
    folders: dict[str, list[OutTensor]] = {}
    for location, tensor in sorted(tensors.items()):
        folder, slash, name = location.rpartition("/")
        folders.setdefault(folder + slash, []).append(dataclasses.replace(tensor, name=name))
    return folders
