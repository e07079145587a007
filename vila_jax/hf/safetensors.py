"""Reading of safetensors files, header first, then one tensor or one slice of it at a time.

Why not the `safetensors` library: its NumPy reader knows no bfloat16, it reads local files only, and it copies what it
could leave in the pages of the file. `vila_jax.hf.out_tensor` writes them.

    | 8 bytes: N, little endian | N bytes of JSON: name -> dtype, shape, data_offsets | tensors, no gaps |

Format: https://huggingface.co/docs/safetensors (its limits on the header are those checked here).
"""

import dataclasses
import functools
import json
import math
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from etils import epath
from numpy.typing import DTypeLike

from vila_jax.errors import CheckpointError
from vila_jax.hf.pages import ALIGNMENT, Pages

DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
_MAX_HEADER = 100_000_000
_PIECE = 2**19  # numbers
_DAMAGED = "Download or export the file again."


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: bytes `start` to `stop` of its file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


@dataclasses.dataclass(frozen=True)
class Shard:
    """One safetensors file whose header has been read and checked."""

    path: epath.Path
    tensors: dict[str, TensorInfo]

    def read(self, name: str, index: tuple[slice, ...] | None = None, dtype: DTypeLike | None = None) -> np.ndarray:
        """Reads a tensor, or the part of it under `index` (one contiguous slice an axis), into memory of its own.

        Only the rows that the first slice asks for are read from the file.

        Args:
          dtype: to convert to; as stored when absent.

        Raises:
          CheckpointError: the file has shrunk since its header was read.
        """
        info = self.tensors[name]
        stored = self.numpy_dtype(name)
        index = index or (slice(None),) * len(info.shape)
        first, last, _ = index[0].indices(info.shape[0]) if index else (0, 1, 1)
        start = info.start + first * math.prod(info.shape[1:]) * stored.itemsize
        shape = (last - first, *info.shape[1:]) if index else ()
        buffer = aligned_empty(shape, stored if dtype is None else np.dtype(dtype))
        _read_into(self.path, start, stored, buffer.reshape(-1))
        # A copy of a part, so that the rows around it can be freed.
        return buffer if not index else np.ascontiguousarray(buffer[(slice(None), *index[1:])])

    def in_place(self, name: str, dtype: DTypeLike) -> np.ndarray | None:
        """A tensor as it lies in the pages of its file, for reading alone; see `vila_jax.hf.pages`.

        None where that cannot be had: it is of another dtype, or does not begin at a multiple of `ALIGNMENT`, which
        files that this package has written keep to, and others by chance.

        Raises:
          CheckpointError: the file has shrunk since its header was read, or cannot be read.
        """
        info, stored = self.tensors[name], self.numpy_dtype(name)
        if stored != np.dtype(dtype) or info.start % ALIGNMENT or not info.nbytes or self._pages is None:
            return None
        return self._pages.read(info.start, info.stop).view(stored).reshape(info.shape)

    @functools.cached_property
    def _pages(self) -> Pages | None:
        return Pages.of(self.path)

    def numpy_dtype(self, name: str) -> np.dtype:
        """The tensor's dtype.

        Raises:
          CheckpointError: it is not a floating type that models are published in.
        """
        dtype = self.tensors[name].dtype
        if dtype not in DTYPES:
            raise CheckpointError(
                f"tensor {name} has dtype {dtype}, which is not supported",
                where=str(self.path),
                fix=f"Supported: {', '.join(DTYPES)}; quantized checkpoints have to be dequantized first.",
            )
        return DTYPES[dtype]


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """As `np.empty`, at an address that XLA's CPU backend takes over as it is, where it would copy any other."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _read_into(path: epath.Path, start: int, stored: np.dtype, out: np.ndarray) -> None:
    """Fills a flat array with the numbers that lie in a file from byte `start` on, converting them.

    Most of the time goes into moving bytes, and into memory that is touched for the first time. Neither holds Python's
    lock, so that several threads can read.

    Args:
      stored: dtype in the file.
    """
    with path.open("rb") as file:
        file.seek(start)
        if stored == out.dtype:
            _fill(file, out, path)
            return
        piece = np.empty(min(_PIECE, len(out)), stored)  # stays in the processor's cache
        for first in range(0, len(out), _PIECE):
            part = out[first : first + _PIECE]
            _fill(file, piece[: len(part)], path)
            convert(piece[: len(part)], part)


def convert(numbers: np.ndarray, out: np.ndarray) -> None:
    """Writes flat numbers into an array of another dtype.

    From bfloat16 to float32 by their bits, which are the upper half: NumPy would hold Python's lock meanwhile.
    """
    if numbers.dtype == ml_dtypes.bfloat16 and out.dtype == np.float32:
        np.left_shift(numbers.view(np.uint16), np.uint32(16), out=out.view(np.uint32), dtype=np.uint32)
    else:
        out[...] = numbers


def _fill(file: BinaryIO, buffer: np.ndarray, path: epath.Path) -> None:
    view = memoryview(buffer.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    while view:
        count = file.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise CheckpointError("file ends in the middle of a tensor", where=str(path), fix=_DAMAGED)
        view = view[count:]


def open_shard(path: epath.Path) -> Shard:
    """Reads and checks the header of a safetensors file; no tensor is read.

    Raises:
      CheckpointError: the file is truncated, its header is malformed or longer than the file, or its tensors overlap,
        leave gaps, reach beyond the file or do not fill their shape.
    """
    size = path.stat().length
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8:
            raise _damaged(path, f"a safetensors file has at least 8 bytes, this has {size}")
        if length > min(size - 8, _MAX_HEADER):
            raise _damaged(path, f"header claims {length} bytes, but the file has only {size}")
        raw = file.read(length)
    try:
        header = json.loads(raw.decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"header is not valid JSON ({error})") from None
    if not isinstance(header, dict):
        raise _damaged(path, "header is not a JSON object")
    header.pop("__metadata__", None)
    tensors = {name: _tensor_info(path, name, entry, 8 + length) for name, entry in header.items()}
    _check_layout(path, tensors, 8 + length, size)
    return Shard(path, tensors)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} appears twice")
    return entries


def _tensor_info(path: epath.Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise _damaged(path, f"entry of tensor {name} lacks dtype, shape or two data_offsets") from None
    if not isinstance(dtype, str) or not all(type(n) is int and n >= 0 for n in (*shape, begin, end)) or end < begin:
        raise _damaged(path, f"entry of tensor {name} has an impossible dtype, shape or offset")
    if dtype in DTYPES and math.prod(shape) * DTYPES[dtype].itemsize != end - begin:
        expected = math.prod(shape) * DTYPES[dtype].itemsize
        raise _damaged(path, f"tensor {name} of shape {list(shape)} needs {expected} bytes, but has {end - begin}")
    return TensorInfo(dtype, shape, data_start + begin, data_start + end)


def _check_layout(path: epath.Path, tensors: dict[str, TensorInfo], data_start: int, size: int) -> None:
    """The tensors must tile the rest of the file: an overlap or a gap would be read as numbers."""
    position = data_start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if info.stop > size:
            raise _damaged(path, f"file is truncated: tensor {name} ends at byte {info.stop}, the file at {size}")
        if info.start != position:
            problem = "overlaps the one before it" if info.start < position else "leaves a gap before it"
            raise _damaged(path, f"tensor {name} {problem}")
        position = info.stop
    if position != size:
        raise _damaged(path, f"file has {size - position} bytes after its last tensor")


def _damaged(path: epath.Path, what: str) -> CheckpointError:
    return CheckpointError(what, where=str(path), fix=_DAMAGED)
