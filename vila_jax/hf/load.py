"""Weights of a checkpoint into a model's state: planned and checked as a whole first, then read one tensor at a time.

Each tensor travels file -> host buffer -> its place on the devices, while threads read the next few. Beyond the
parameters themselves, host memory holds no more than these. On CPUs the pages of the file may be that place, if that is
asked for: then nothing is copied.
"""

import collections
import contextlib
import dataclasses
import functools
import math
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike

from vila_jax.dist.rules import ShardingRules, sharding_for
from vila_jax.errors import CheckpointError
from vila_jax.hf.checkpoint import Checkpoint
from vila_jax.hf.files import name_list
from vila_jax.hf.safetensors import Shard
from vila_jax.nn.config import VLMConfig
from vila_jax.nn.params import abstract, dotted, logical_axes
from vila_jax.nn.positions import resize_positions_bicubic, resize_positions_linear
from vila_jax.nn.vlm import VLM
from vila_jax.quantize.spec import Quantization
from vila_jax.quantize.structure import quantize_structure, quantized, scale_name

OnTensor = Callable[[str, int, int], None]
"""Progress: name of the tensor just loaded, bytes read so far, bytes to read in all."""

Part = tuple[tuple[int | None, int | None], ...]
"""A slice of every axis, as a key; empty for the whole."""

_AHEAD = 4
"""Tensors that are read while one is placed, each by a thread."""

_POSITIONS = "vision_tower.embeddings.position"
_RESIZES = {"linear": resize_positions_linear, "bicubic": resize_positions_bicubic}


@dataclasses.dataclass(frozen=True)
class Source:
    """Where one weight comes from.

    Attributes:
      unit_axes: axes of length 1 that the file has in front (InternViT's embeddings) and the weight has not.
      resize: of a table of positions for tiles of another size, which is then read as a whole.
    """

    shard: Shard
    name: str
    unit_axes: int = 0
    resize: Callable[[np.ndarray], np.ndarray] | None = None

    @property
    def nbytes(self) -> int:
        return self.shard.tensors[self.name].nbytes

    @property
    def dtype(self) -> np.dtype:
        """As stored."""
        return self.shard.numpy_dtype(self.name)

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored, before any resizing."""
        return self.shard.tensors[self.name].shape[self.unit_axes :]

    def read(self, index: tuple[slice, ...] = (), dtype: DTypeLike | None = None) -> np.ndarray:
        """The weight, or the part of it under `index` (one slice an axis), in memory of its own; perhaps converted."""
        if self.resize is not None:
            resized = self.resize(self.shard.read(self.name).reshape(self.shape))[index]
            return resized if dtype is None else resized.astype(dtype)
        read = self.shard.read(self.name, (slice(None),) * self.unit_axes + index if index else None, dtype)
        return read.reshape(read.shape[self.unit_axes :])

    def in_place(self, dtype: DTypeLike) -> np.ndarray | None:
        """The weight as it lies in the pages of its file; None where it has to be read. See `Shard.in_place`."""
        found = None if self.resize is not None else self.shard.in_place(self.name, dtype)
        return None if found is None else found.reshape(self.shape)


def default_dtype() -> DTypeLike:
    """bfloat16 on accelerators, float32 on CPUs, which decode faster with it (`docs/performance.md`)."""
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


def abstract_model(
    config: VLMConfig, dtype: DTypeLike, quantization: Quantization | None = None
) -> tuple[nnx.GraphDef, nnx.State]:
    """Structure of the model, and its state with `jax.ShapeDtypeStruct` for weights."""
    return abstract(lambda rngs: quantize_structure(VLM(config, rngs=rngs, dtype=dtype), quantization))


def weight_shapes(config: VLMConfig) -> dict[str, tuple[int, ...]]:
    """Our path of every weight of a model -> its shape."""
    _, state = abstract_model(config, np.float32)
    return {dotted(path): tuple(leaf.get_value().shape) for path, leaf in nnx.to_flat_state(state)}


def load_state(
    checkpoint: Checkpoint,
    *,
    dtype: DTypeLike,
    on_tensor: OnTensor | None = None,
    **options: Any,
) -> tuple[nnx.GraphDef, nnx.State]:
    """Loads all weights of a checkpoint: `plan_weights`, and `WeightPlan.read` of it.

    Args:
      on_tensor: called after each tensor, for progress.
      **options: see `plan_weights`.

    Returns:
      The graph definition of `vila_jax.nn.vlm.VLM` and its state.

    Raises:
      CheckpointError: see `plan_weights`. Raised before any device memory is touched.
    """
    plan = plan_weights(checkpoint, dtype=dtype, **options)
    return plan.graphdef, plan.read(on_tensor)


def plan_weights(
    checkpoint: Checkpoint,
    *,
    dtype: DTypeLike,
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
    in_float32: Callable[[str], bool] | None = None,
    quantization: Quantization | None = None,
    mmap: bool = False,
) -> "WeightPlan":
    """Finds all weights of a checkpoint, and decides what becomes of them; reads none.

    Args:
      dtype: of the weights in memory, whatever they are stored in.
      in_float32: says of a dotted path whether that weight is float32 all the same, as one that is trained.
      quantization: of which weights fewer bits are kept; each is rounded, on the device, from what is stored before the
        next one is read.
      mesh: places the weights by `rules`; without it they go to the default device.
      mmap: leaves weights of the wanted dtype where they are, in the pages of their files (`vila_jax.hf.pages`), if the
        default device is a CPU, and there is no mesh. The files must not be written into as long as the weights live.

    Raises:
      CheckpointError: tensors are missing, unexpected, mis-shaped or of an unsupported dtype.
    """
    graphdef, state = abstract_model(checkpoint.config.vlm, dtype, quantization)
    shapes = {dotted(path): leaf.get_value().shape for path, leaf in nnx.to_flat_state(state)}
    shardings = _shardings(state, shapes, mesh, rules)
    rounded = {name for name in shapes if quantization is not None and quantization.means(name)}
    stored = shapes.keys() - set(map(scale_name, rounded))
    sources = match_tensors(checkpoint, {name: shape for name, shape in shapes.items() if name in stored})

    def target(name: str) -> _Target:
        wanted = np.float32 if in_float32 is not None and in_float32(name) else dtype
        own = sources[name].dtype if name in rounded else np.dtype(wanted)
        return _Target(
            sources[name], shapes[name], own, shardings[name], name in rounded, in_place and name not in rounded
        )

    in_place = mmap and mesh is None and jax.default_backend() == "cpu"
    targets = {name: target(name) for name in shapes if name in stored}
    return WeightPlan(graphdef, _placed(state, targets, shardings), targets, shardings, quantization)


def _placed(
    state: nnx.State, targets: Mapping[str, "_Target"], shardings: Mapping[str, NamedSharding | None]
) -> nnx.State:
    """Shapes of weights as they will lie on the devices."""

    def placed(path: tuple[Any, ...], leaf: Any) -> Any:
        name, shape = dotted(path), leaf.get_value()
        dtype = shape.dtype if name not in targets or targets[name].rounded else targets[name].dtype
        return leaf.replace(jax.ShapeDtypeStruct(shape.shape, dtype, sharding=shardings[name]))

    return nnx.from_flat_state([(path, placed(path, leaf)) for path, leaf in nnx.to_flat_state(state)])


@dataclasses.dataclass(frozen=True)
class WeightPlan:
    """Where every weight of a model comes from, and where it goes.

    Attributes:
      graphdef: of `vila_jax.nn.vlm.VLM`.
      shapes: its state before anything is read, with `jax.ShapeDtypeStruct` for weights.
    """

    graphdef: nnx.GraphDef
    shapes: nnx.State
    targets: Mapping[str, "_Target"]
    shardings: Mapping[str, NamedSharding | None]
    quantization: Quantization | None

    def read(self, on_tensor: OnTensor | None = None) -> nnx.State:
        """The state, read from the files.

        Args:
          on_tensor: called after each tensor, for progress; what it raises ends the reading.
        """
        done, total = 0, sum(own.source.nbytes for own in self.targets.values())

        def progress(own: _Target) -> None:
            nonlocal done
            done += own.source.nbytes
            if on_tensor is not None:
                on_tensor(own.source.name, done, total)

        loaded = self._use_in_place(progress)
        loaded |= self._read({name: own for name, own in self.targets.items() if name not in loaded}, progress)
        flat = nnx.to_flat_state(self.shapes)
        return nnx.from_flat_state([(path, leaf.replace(loaded[dotted(path)])) for path, leaf in flat])

    def _use_in_place(self, progress: Callable[["_Target"], None]) -> dict[str, jax.Array]:
        """The weights that stay in the pages of their files. Few calls: each may wait for Python's lock."""
        found: dict[str, np.ndarray] = {}
        for name, own in self.targets.items():
            array = own.source.in_place(own.dtype) if own.in_place else None
            if array is not None:
                found[name] = array
                progress(own)
        return dict(zip(found, jax.device_put(list(found.values())), strict=True))

    def _read(self, targets: Mapping[str, "_Target"], progress: Callable[["_Target"], None]) -> dict[str, jax.Array]:
        """Weights that are copied, while threads read those that come next."""
        loaded: dict[str, jax.Array] = {}
        previous = None
        with contextlib.closing(_read_ahead(targets.values())) as read:
            for (name, own), parts in zip(targets.items(), read, strict=True):
                arrays = {name: own.place(parts)}
                if self.quantization is not None and own.rounded:
                    arrays = quantized(name, arrays[name], self.quantization, self.shardings)
                # One transfer may overlap the next; more would pile up host buffers.
                jax.block_until_ready(previous)
                previous = arrays
                loaded |= arrays
                progress(own)
        jax.block_until_ready(previous)
        return loaded

    def start_reading(self, on_tensor: OnTensor | None = None) -> Future[nnx.State]:
        """`read` in a thread of its own, which ends with the main thread, read or not."""

        def unless_over(name: str, done: int, total: int) -> None:
            if not threading.main_thread().is_alive():
                raise RuntimeError("nobody waits for these weights any longer")
            if on_tensor is not None:
                on_tensor(name, done, total)

        thread = ThreadPoolExecutor(1, thread_name_prefix="weights")
        try:
            return thread.submit(self.read, unless_over)
        finally:
            thread.shutdown(wait=False)


def _shardings(
    state: nnx.State, shapes: Mapping[str, tuple[int, ...]], mesh: Mesh | None, rules: ShardingRules | None
) -> dict[str, NamedSharding | None]:
    """Where every weight belongs; None for the default device."""
    axes = logical_axes(state)
    return {
        name: None if mesh is None else sharding_for(axes[name], shape, mesh, rules) for name, shape in shapes.items()
    }


@dataclasses.dataclass(frozen=True)
class _Target:
    """A weight on its devices; `rounded`, once it is there, to fewer bits, or left `in_place`, if that can be."""

    source: Source
    shape: tuple[int, ...]
    dtype: np.dtype
    sharding: NamedSharding | None
    rounded: bool
    in_place: bool

    @property
    def parts(self) -> list[Part]:
        """What the devices of this process hold of it; several may hold copies of one part."""
        if self.sharding is None:
            return [()]
        return list(map(_part, self.sharding.addressable_devices_indices_map(self.shape).values()))

    def read(self, part: Part) -> np.ndarray:
        """A part of it, in memory of its own."""
        return self.source.read(tuple(slice(start, stop) for start, stop in part), self.dtype)

    def place(self, parts: dict[Part, Future[np.ndarray]]) -> jax.Array:
        """The weight, of parts that threads have read, or are reading."""
        if self.sharding is None:
            return jax.device_put(parts[()].result())
        return jax.make_array_from_callback(self.shape, self.sharding, lambda index: parts[_part(index)].result())


def _part(index: tuple[slice, ...] | None) -> Part:
    return tuple((own.start, own.stop) for own in index or ())


def _read_ahead(targets: Iterable[_Target]) -> Generator[dict[Part, Future[np.ndarray]], None, None]:
    """The parts of one weight after another, while threads read those of the next ones."""
    threads = ThreadPoolExecutor(_AHEAD, thread_name_prefix="load")
    waiting: collections.deque[dict[Part, Future[np.ndarray]]] = collections.deque()
    try:
        for target in targets:
            waiting.append({part: threads.submit(target.read, part) for part in set(target.parts)})
            if len(waiting) > _AHEAD:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        threads.shutdown(cancel_futures=True)


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
    table = checkpoint.table
    for name, file in checkpoint.locations.items():
        path = table.from_hf(name)
        if path in sources:
            twice.append(f"{name} and {sources[path].name}")
        elif path in shapes:
            sources[path] = _source(checkpoint, checkpoint.shards[file], name, path, shapes[path])
        elif not table.is_unused(name, checkpoint.config.vlm):
            unexpected.append(name)
    missing = [str(table.to_hf(path)) for path in shapes if path not in sources]
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


def _source(checkpoint: Checkpoint, shard: Shard, name: str, path: str, shape: tuple[int, ...]) -> Source:
    """A tensor as the source of a weight of this shape."""
    stored = shard.tensors[name].shape
    extra = max(len(stored) - len(shape), 0)
    source = Source(shard, name, extra if stored[:extra] == (1,) * extra else 0)
    rule, vision = checkpoint.config.position_resize, checkpoint.config.vlm.vision
    if path != _POSITIONS or rule is None or source.shape == shape or source.shape[1:] != shape[1:]:
        return source
    patches = source.shape[0] - vision.has_class_token
    if math.isqrt(patches) ** 2 != patches:
        return source
    return dataclasses.replace(source, resize=functools.partial(_RESIZES[rule], side=vision.side))


def _misshapen(sources: dict[str, Source], shapes: dict[str, tuple[int, ...]]) -> Iterable[str]:
    for path, source in sources.items():
        if source.resize is None and source.shape != shapes[path]:
            yield f"{source.name} (expected {list(shapes[path])}, got {list(source.shape)})"
