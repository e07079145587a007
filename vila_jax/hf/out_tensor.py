"""Tensors on their way into safetensors files, one at a time: a file is never in memory as a whole.

What is copied as it is travels in pieces of a few megabytes; what is changed on the way is in memory while it is.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath
from numpy.typing import DTypeLike

from vila_jax.errors import CheckpointError
from vila_jax.hf.files import INDEX, SINGLE
from vila_jax.hf.pages import ALIGNMENT
from vila_jax.hf.safetensors import DTYPES, Shard, TensorInfo

CODES = {dtype.name: code for code, dtype in DTYPES.items()}
"""NumPy's name of a dtype -> that of safetensors."""

_PIECE = 16 * 2**20
_LENGTH = 8  # bytes in front of the header, which tell its length


@dataclasses.dataclass(frozen=True)
class OutTensor:
    """One tensor to write.

    Attributes:
      name: in the target.
      dtype: as safetensors calls it.
      shape: as written.
      shard, source_name: where it comes from; None for what is only in memory.
      read: makes its values, of any floating dtype; None if they are the bytes of the source.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: Shard | None = None
    source_name: str = ""
    read: Callable[[], np.ndarray] | None = None

    @classmethod
    def copy(cls, shard: Shard, name: str) -> "OutTensor":
        """The tensor as it lies in its file."""
        if isinstance(shard, Composed):
            return dataclasses.replace(shard.sources[name], name=name)
        info = shard.tensors[name]
        return cls(name, info.dtype, info.shape, shard, name)

    @classmethod
    def of_array(cls, name: str, array: Any) -> "OutTensor":
        """An array in memory, on whatever device; it has to be of a dtype in `CODES`."""
        return cls(name, CODES[np.dtype(array.dtype).name], tuple(array.shape)).holding(array)

    def holding(self, array: Any) -> "OutTensor":
        """The tensor with the values of an array of the same number of entries."""
        # Of a copy: a `jax.Array` keeps what is read of it, so that in the end the host would hold the whole model.
        return dataclasses.replace(self, read=lambda: np.asarray(array.copy()).reshape(self.shape))

    @property
    def _source(self) -> tuple[Shard, TensorInfo]:
        assert self.shard is not None, f"{self.name} has no values"
        return self.shard, self.shard.tensors[self.source_name]

    @property
    def info(self) -> TensorInfo:
        """What the header of a file that holds nothing else would say of it."""
        return TensorInfo(self.dtype, self.shape, 0, self.nbytes)

    @property
    def itemsize(self) -> int:
        if self.dtype in DTYPES:
            return DTYPES[self.dtype].itemsize
        _, info = self._source
        return info.nbytes // max(math.prod(info.shape), 1)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.itemsize

    def values(self) -> np.ndarray:
        """Its values before the dtype is changed."""
        return self._source[0].read(self.source_name) if self.read is None else self.read()

    def edited(self, edit: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...] | None = None) -> "OutTensor":
        """The tensor with its values changed by `edit`, and its shape if that changes too."""
        return dataclasses.replace(self, shape=shape or self.shape, read=lambda: edit(self.values()))

    def as_dtype(self, name: str | None) -> "OutTensor":
        """The tensor in another dtype; None keeps it, and what is no floating type is always kept."""
        if name is None or self.dtype not in DTYPES or self.dtype == CODES[name]:
            return self
        return dataclasses.replace(self, dtype=CODES[name], read=self.values)

    def pieces(self) -> Iterator[bytes | memoryview]:
        """Its bytes as written."""
        if self.read is None:
            yield from self._copied()
            return
        array = self.values()
        if array.shape != self.shape:
            raise CheckpointError(f"expected shape {self.shape}, got {array.shape}", where=self.name)
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(array, DTYPES[self.dtype])
        if self.dtype == "F16" and not np.isfinite(stored).all() and np.isfinite(array).all():
            raise CheckpointError(
                "it holds numbers that float16 cannot", where=self.name, fix="Write bfloat16 or float32."
            )
        yield stored.reshape(-1).view(np.uint8).data

    def _copied(self) -> Iterator[bytes]:
        shard, info = self._source
        left = info.nbytes
        with shard.path.open("rb") as file:
            file.seek(info.start)
            while left:
                piece = file.read(min(_PIECE, left))
                if not piece:
                    raise CheckpointError("the file has shrunk while it was read", where=str(shard.path))
                left -= len(piece)
                yield piece


@dataclasses.dataclass(frozen=True)
class Composed(Shard):
    """What can be read as if it were one file, and is not.

    Attributes:
      sources: of its tensors, by name; made or read anew whenever they are asked for.
    """

    sources: Mapping[str, OutTensor]

    def read(self, name: str, index: tuple[slice, ...] | None = None, dtype: DTypeLike | None = None) -> np.ndarray:
        """See `Shard.read`."""
        source = self.sources[name]
        if source.read is None and source.shard is not None:
            return source.shard.read(source.source_name, index, dtype)
        values = source.values().astype(self.numpy_dtype(name), copy=False)
        part = values[index] if index else values
        return np.ascontiguousarray(part if dtype is None else part.astype(dtype, copy=False))

    def in_place(self, name: str, dtype: DTypeLike) -> np.ndarray | None:
        """See `Shard.in_place`."""
        source = self.sources[name]
        if source.read is not None or source.shard is None:
            return None
        return source.shard.in_place(source.source_name, dtype)


def plan_files(tensors: Iterable[OutTensor], max_bytes: int) -> dict[str, list[OutTensor]]:
    """Which file holds which tensors, in their order: one file, or numbered ones of at most `max_bytes`.

    Only a tensor that is larger by itself makes a larger file.
    """
    groups: list[list[OutTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if groups[-1] and size + tensor.nbytes > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.nbytes
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, start=1)}


def index_file(files: dict[str, list[OutTensor]]) -> dict[str, bytes]:
    """The index of several files; a single one needs none."""
    if len(files) == 1:
        return {}
    weight_map = {tensor.name: file for file, tensors in files.items() for tensor in tensors}
    total = sum(tensor.nbytes for tensors in files.values() for tensor in tensors)
    return {INDEX: json_bytes({"metadata": {"total_size": total}, "weight_map": weight_map})}


def json_bytes(value: dict) -> bytes:
    """A JSON file as transformers writes it."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def write_file(path: epath.Path, tensors: Iterable[OutTensor], on_tensor: Callable[[OutTensor], None]) -> None:
    """Writes one safetensors file; `on_tensor` is called after each tensor.

    Tensors begin at multiples of `ALIGNMENT`, so that they can be used where they lie. The format has no gaps: those
    whose size is no multiple come last, each still aligned to its dtype.
    """
    tensors = sorted(tensors, key=lambda tensor: (tensor.nbytes % ALIGNMENT > 0, -tensor.itemsize))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        offsets = [position, position + tensor.nbytes]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        position += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH + len(text)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(_LENGTH, "little") + text)
        for tensor in tensors:
            for piece in tensor.pieces():
                file.write(piece)
            on_tensor(tensor)
        file.flush()
        if "://" not in str(path):
            os.fsync(file.fileno())  # before its name says that it is complete
