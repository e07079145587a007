"""Weights of a checkpoint into a model's state: checked as a whole first, then one tensor at a time.

Each tensor travels file -> host buffer -> its place on the devices before the next one is read, so that host memory
beyond the parameters themselves stays at about two tensors.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike

from vila_jax.dist.rules import ShardingRules, sharding_for
from vila_jax.errors import CheckpointError
from vila_jax.hf.checkpoint import Checkpoint, name_list
from vila_jax.hf.keys import LLAVA, canonical, is_unused
from vila_jax.hf.safetensors import Shard
from vila_jax.nn.config import VLMConfig
from vila_jax.nn.params import abstract, dotted, logical_axes
from vila_jax.nn.vlm import VLM

OnTensor = Callable[[str, int, int], None]
"""Progress: name of the tensor just loaded, bytes read so far, bytes to read in all."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where one weight comes from."""

    shard: Shard
    name: str

    @property
    def nbytes(self) -> int:
        return self.shard.tensors[self.name].nbytes


def abstract_model(config: VLMConfig, dtype: DTypeLike) -> tuple[nnx.GraphDef, nnx.State]:
    """Structure of the model, and its state with `jax.ShapeDtypeStruct` for weights."""
    return abstract(lambda rngs: VLM(config, rngs=rngs, dtype=dtype))


def load_state(
    checkpoint: Checkpoint,
    *,
    dtype: DTypeLike,
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
    on_tensor: OnTensor | None = None,
) -> tuple[nnx.GraphDef, nnx.State]:
    """Loads all weights of a checkpoint.

    Args:
      dtype: of the weights in memory, whatever they are stored in.
      mesh: places the weights by `rules`; without it they go to the default device.
      on_tensor: called after each tensor, for progress.

    Returns:
      The graph definition of `vila_jax.nn.vlm.VLM` and its state.

    Raises:
      CheckpointError: tensors are missing, unexpected, mis-shaped or of an unsupported dtype. Raised before any tensor
        is read and before any device memory is touched.
    """
    graphdef, state = abstract_model(checkpoint.config.vlm, dtype)
    flat = list(nnx.to_flat_state(state))
    sources = match_tensors(checkpoint, {dotted(path): leaf.get_value().shape for path, leaf in flat})
    axes = logical_axes(state)
    total, done, previous, loaded = sum(source.nbytes for source in sources.values()), 0, None, []
    for path, leaf in flat:
        name = dotted(path)
        shape, source = leaf.get_value().shape, sources[name]
        sharding = None if mesh is None else sharding_for(axes[name], shape, mesh, rules)
        array = _place(source, shape, np.dtype(dtype), sharding)
        # One transfer may overlap the next read; more would pile up host buffers.
        jax.block_until_ready(previous)
        previous = array
        loaded.append((path, leaf.replace(array)))
        done += source.nbytes
        if on_tensor is not None:
            on_tensor(source.name, done, total)
    jax.block_until_ready(previous)
    return graphdef, nnx.from_flat_state(loaded)


def _place(source: Source, shape: tuple[int, ...], dtype: np.dtype, sharding: NamedSharding | None) -> jax.Array:
    """Reads one tensor, or of each device's part only that part, and puts it in place."""

    @functools.cache  # devices that hold copies of the same part share one read
    def part(index: tuple[tuple[int | None, int | None], ...]) -> np.ndarray:
        slices = tuple(slice(start, stop) for start, stop in index)
        return source.shard.read(source.name, slices).astype(dtype, copy=False)

    if sharding is None:
        return jax.device_put(part(()))
    return jax.make_array_from_callback(
        shape, sharding, lambda index: part(tuple((i.start, i.stop) for i in index or ()))
    )


def match_tensors(checkpoint: Checkpoint, shapes: dict[str, tuple[int, ...]]) -> dict[str, Source]:
    """Finds the tensor of every weight, and accounts for every tensor.

    Args:
      shapes: dotted path of every weight of the model -> its shape.

    Raises:
      CheckpointError: lists all tensors that are missing, unexpected, present twice, mis-shaped or of an unsupported
        dtype.
    """
    sources: dict[str, Source] = {}
    unexpected, twice = [], []
    for name, file in checkpoint.locations.items():
        published = canonical(name)
        path = LLAVA.from_hf(published)
        if path in sources:
            twice.append(f"{name} and {sources[path].name}")
        elif path in shapes:
            sources[path] = Source(checkpoint.shards[file], name)
        elif not is_unused(published, checkpoint.config.vlm):
            unexpected.append(name)
    missing = [str(LLAVA.to_hf(path)) for path in shapes if path not in sources]
    problems = {"missing": missing, "unexpected": unexpected, "present twice": twice}
    problems["of the wrong shape"] = list(_misshapen(sources, shapes))
    found = "; ".join(f"{len(names)} {kind}: {name_list(names)}" for kind, names in problems.items() if names)
    if found:
        raise CheckpointError(
            f"tensors do not fit the config: {found}",
            where=str(checkpoint.folder),
            fix="Check that config.json belongs to these weights.",
        )
    for source in sources.values():
        source.shard.numpy_dtype(source.name)
    return sources


def _misshapen(sources: dict[str, Source], shapes: dict[str, tuple[int, ...]]) -> Iterable[str]:
    for path, source in sources.items():
        found = source.shard.tensors[source.name].shape
        if found != shapes[path]:
            yield f"{source.name} (expected {list(shapes[path])}, got {list(found)})"
