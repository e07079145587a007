"""A model in memory as a checkpoint: of the files that it was loaded from, or of none."""

from collections.abc import Mapping
from typing import Any

from etils import epath
from flax import nnx

from vila_jax.errors import CheckpointError, ConfigError
from vila_jax.hf.checkpoint import Checkpoint
from vila_jax.hf.files import name_list
from vila_jax.hf.keys import LLAVA
from vila_jax.hf.load import OnTensor, match_tensors, weight_shapes
from vila_jax.hf.new_model import NewModel
from vila_jax.hf.out_tensor import OutTensor
from vila_jax.hf.safetensors import DTYPES
from vila_jax.hf.staging import Staging
from vila_jax.hf.targets import LAYOUTS, Target
from vila_jax.hf.writing import (
    MAX_SHARD_BYTES,
    Written,
    check_request,
    in_target,
    names_by_path,
    target_of,
    write_checkpoint,
)
from vila_jax.nn.config import VLMConfig
from vila_jax.nn.params import dotted
from vila_jax.quantize.structure import is_quantized


def export(
    source: Checkpoint | NewModel,
    state: nnx.State | Mapping[str, Any],
    folder: epath.PathLike,
    *,
    to: str,
    partial: bool = False,
    dtype: str | None = None,
    style: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
    on_tensor: OnTensor | None = None,
) -> Written:
    """Writes a model in memory: its weights, and everything else as its source has it.

    What training has not changed comes out bit by bit as it was, if it was loaded in the dtype that it is stored in, or
    in a wider one. A `NewModel` is stored in the dtype of its state.

    Args:
      source: the checkpoint that `state` was loaded from, or the config and the files of a model that has none, which
        can only be written as `hf`.
      state: of `vila_jax.nn.vlm.VLM`, or its arrays by dotted path; every array readable from this process.
      partial: whether weights may be missing in `state`, which then stay as the checkpoint has them.

    The other arguments and the errors are those of `vila_jax.hf.convert.convert`. Nothing is left behind by an export
    that fails.
    """
    check_request(folder, to, dtype, overwrite)
    if isinstance(source, NewModel):
        target, tensors = _of_new_model(source, state, to, dtype, style)
    else:
        target, held = target_of(source, to, dtype, style)
        arrays = _arrays(state, source.config.vlm, partial=partial)
        tensors = in_target(source, target, held | _of_arrays(source, arrays, held), dtype)
    with Staging(folder, None, overwrite=overwrite) as staging:
        return write_checkpoint(staging, target, tensors, max_shard_bytes=max_shard_bytes, on_tensor=on_tensor)


def _of_new_model(
    model: NewModel, state: nnx.State | Mapping[str, Any], to: str, dtype: str | None, style: str | None
) -> tuple[Target, dict[str, OutTensor]]:
    if to != "hf":
        fix = "Export it as `hf`, then convert that."
        raise ConfigError(f"a model without a checkpoint has no form as `{to}`", where="to", fix=fix)
    if style is not None:
        raise ConfigError("the files of a new model bring their own chat template", where="style", fix="Leave it out.")
    tensors = model.tensors(_arrays(state, model.vlm))
    stored = dtype or DTYPES[next(iter(tensors.values())).dtype].name
    target = Target(LAYOUTS[to], LLAVA, model.small_files(stored))
    return target, {name: tensor.as_dtype(dtype) for name, tensor in tensors.items()}


def _arrays(state: nnx.State | Mapping[str, Any], config: VLMConfig, *, partial: bool = False) -> dict[str, Any]:
    """The arrays of a state by our path.

    Raises:
      CheckpointError: the state is of another model, or quantised.
    """
    if isinstance(state, nnx.State):
        state = {dotted(path): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}
    arrays = dict(state)
    if rounded := [path for path, array in arrays.items() if is_quantized(array)]:
        fix = "Load the model without `quantize`, and export that."
        what = f"weights in fewer bits have no place in its files: {name_list(rounded)}"
        raise CheckpointError(what, where="state", fix=fix)
    expected, found = weight_shapes(config), {path: tuple(array.shape) for path, array in arrays.items()}
    paths = found.keys() if partial else expected.keys() | found.keys()
    wrong = [path for path in sorted(paths) if expected.get(path) != found.get(path)]
    if wrong:
        raise CheckpointError(f"weights do not fit the config: {name_list(wrong)}", where="state")
    return arrays


def _of_arrays(checkpoint: Checkpoint, arrays: dict[str, Any], tensors: dict[str, OutTensor]) -> dict[str, OutTensor]:
    """The tensors of these arrays, by their name in the source.

    Raises:
      ConfigError: positions were resized at load, which no layout remembers.
    """
    sources = match_tensors(checkpoint, weight_shapes(checkpoint.config.vlm))
    resized = [sources[path].name for path in arrays if sources[path].resize is not None]
    if resized:
        raise ConfigError(
            f"{resized[0]} was resized for tiles of another size, and the files describe the old one",
            where=str(checkpoint.folder),
            fix="Export a model whose tower is loaded at its own size.",
        )
    held = {sources[path].name: array for path, array in arrays.items()}
    head = names_by_path(checkpoint).get("decoder.head")
    tied = checkpoint.config.vlm.decoder.tie_embeddings
    if head is not None and tied and "decoder.embedding" in arrays:  # a tied head that the files hold all the same
        held[head] = arrays["decoder.embedding"]
    return {name: tensors[name].holding(array) for name, array in held.items()}
