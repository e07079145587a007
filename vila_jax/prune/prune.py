"""Prunes a checkpoint: tensor by tensor, without a model in memory."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from etils import epath
from jaxtyping import Float

from vila_jax.errors import CheckpointError
from vila_jax.hf.checkpoint import Checkpoint
from vila_jax.hf.load import OnTensor
from vila_jax.hf.out_tensor import OutTensor
from vila_jax.hf.staging import Staging
from vila_jax.hf.targets import LAYOUTS
from vila_jax.hf.writing import (
    MAX_SHARD_BYTES,
    Written,
    check_request,
    in_target,
    refuse_own_source,
    target_of,
    write_checkpoint,
)
from vila_jax.nn.config import VLMConfig
from vila_jax.prune.configs import with_sizes
from vila_jax.prune.parts import Part, find_parts, magnitude, strongest
from vila_jax.prune.sizes import Sparsity, remaining

Activations = Mapping[str, Float[np.ndarray, " _"]]
"""Name of a part (see `vila_jax.prune.parts`) -> how strongly each of its units speaks."""


@dataclasses.dataclass(frozen=True)
class Pruned:
    """What was pruned, and what of it was written.

    Attributes:
      before, after: configs of the two networks.
      bytes_before: of all tensors of the source.
      written: the pruned checkpoint.
    """

    before: VLMConfig
    after: VLMConfig
    bytes_before: int
    written: Written


def prune(
    checkpoint: Checkpoint,
    folder: epath.PathLike,
    sparsity: Sparsity,
    *,
    activations: Callable[[], Activations] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
    on_tensor: OnTensor | None = None,
) -> Pruned:
    """Writes a checkpoint without its weakest FFN channels and heads, in the layout of the source.

    What remains is copied bit by bit, in its order; a sparsity of 0 gives the source again. Every layer loses as many,
    each its own. The folder appears when it is complete.

    Two criteria: the L2 norm of all weights of a unit (as the group magnitude of DepGraph, arXiv:2301.12900), or how
    strongly it speaks on calibration prompts (as Minitron, arXiv:2407.14679), see `vila_jax.prune.calibrate`.

    Args:
      checkpoint: with weights of 16 or 32 bits.
      folder: to write.
      sparsity: how much to remove.
      activations: calls `calibrate`, once everything else is known to be in order. Parts of which it says nothing
        (blocks of the tower behind the feature layer, which other tools load all the same) go by magnitude, as all do
        without it.
      max_shard_bytes: tensors are spread over several files above this size.
      overwrite: replaces an existing checkpoint as a whole instead of refusing to.
      on_tensor: called after each tensor that is written, for progress.

    Raises:
      ConfigError: fractions that are out of range, or that leave sizes which a config cannot say.
      CheckpointError: files are missing, damaged, quantised or contradict each other, `folder` exists or holds the
        source, or activations of another model.
    """
    to = next(name for name, layout in LAYOUTS.items() if layout == checkpoint.config.layout)
    refuse_own_source(folder, [checkpoint.folder])
    check_request(folder, to, None, overwrite)
    before = checkpoint.config.vlm
    after = remaining(before, sparsity, divides_width=_is_llama(checkpoint))
    target, tensors = target_of(checkpoint, to, None, None)
    parts = find_parts(checkpoint, after)
    known = activations() if activations is not None and parts else {}
    for part in parts:
        own = {name: tensors[name] for name in part.axes}
        chosen = strongest(_scores(part, own, known), part.kept)
        tensors |= {name: part.cut(tensor, chosen) for name, tensor in own.items()}
    if after != before:
        target = dataclasses.replace(target, files=with_sizes(target.files, target.layout, after))
    with Staging(folder, None, overwrite=overwrite) as staging:
        placed = in_target(checkpoint, target, tensors, None)
        written = write_checkpoint(staging, target, placed, max_shard_bytes=max_shard_bytes, on_tensor=on_tensor)
    return Pruned(before, after, checkpoint.nbytes, written)


def _scores(part: Part, tensors: Mapping[str, OutTensor], activations: Activations) -> Float[np.ndarray, " units"]:
    if part.name not in activations:
        return magnitude(part, tensors.values())
    scores = activations[part.name]
    if len(scores) != part.units:
        what = f"activations of {len(scores)} units, and the checkpoint has {part.units}"
        raise CheckpointError(what, where=part.name, fix="Calibrate with the model that is pruned.")
    return scores


def _is_llama(checkpoint: Checkpoint) -> bool:
    """Whether other tools will read the decoder's config as transformers' `LlamaConfig`."""
    raw = checkpoint.raw_config
    section = {"llava": raw.get("text_config"), "folders": raw.get("llm_cfg"), "v1": raw}[checkpoint.config.layout]
    return "llama" in str((section or {}).get("model_type", "llama"))
