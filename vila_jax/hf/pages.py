"""Files as memory: the kernel's own pages of a file, where others would copy them into memory that is new.

New memory is what reading gigabytes waits for: the kernel clears every page of it, and in a virtual machine the host
may have to find the page first. Pages of a file that the kernel has already cost next to nothing, are shared by all
processes that use the file, and can be given up for others when memory is short.

The file must stay as it is while they are used. Whoever replaces it by a new file of the same name, as tools that
download and convert do, leaves the old one to its readers; whoever writes into it changes what they read.
"""

import ctypes
import errno
import functools
import mmap
import os
import sys
from collections.abc import Callable

import numpy as np
from etils import epath

from vila_jax.errors import CheckpointError

ALIGNMENT = 64
"""Bytes. XLA's CPU backend takes over what begins at a multiple of them as it is, and copies the rest."""

_PIECE = 2**29
"""Bytes that are read at once: few calls, since whoever comes back from one may have to wait for Python's lock."""

_POPULATE_READ = 22  # madvise(2), Linux 5.14: reads all pages now, and says what goes wrong


class Pages:
    """The pages of one file, for reading."""

    def __init__(self, path: epath.Path, memory: mmap.mmap):
        self._path, self._bytes = path, np.frombuffer(memory, np.uint8)
        self._pieces_there: set[int] = set()

    @classmethod
    def of(cls, path: epath.Path) -> "Pages | None":
        """None where a file cannot be used so: not on a disk, or by a kernel that would not tell of errors."""
        if "://" in str(path):
            return None
        try:
            with path.open("rb") as file:
                pages = cls(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            return pages if pages._populate(0, 1) == 0 else None
        except (OSError, ValueError):  # ValueError: the file is empty
            return None

    def read(self, start: int, stop: int) -> np.ndarray:
        """Bytes `start` to `stop`, all of them in memory now. Does not hold Python's lock while they are read.

        Raises:
          CheckpointError: the file has shrunk, or cannot be read.
        """
        if stop > len(self._bytes):
            raise self._error(start, stop, errno.EFAULT)
        for piece in range(start // _PIECE, -(-stop // _PIECE)):
            if piece not in self._pieces_there:
                first, last = piece * _PIECE, min((piece + 1) * _PIECE, len(self._bytes))
                error = self._populate(first, last)
                if error:
                    raise self._error(first, last, error)
                self._pieces_there.add(piece)
        return self._bytes[start:stop]

    def _populate(self, start: int, stop: int) -> int:
        """Reads what is not in memory of the pages from byte `start` on; 0, or the number of what went wrong."""
        return _madvise()(self._bytes.ctypes.data + start, stop - start, _POPULATE_READ)

    def _error(self, start: int, stop: int, error: int) -> CheckpointError:
        what = f"file cannot be read from byte {start} to {stop} ({os.strerror(error)})"
        return CheckpointError(what, where=str(self._path), fix="Download or export the file again.")


@functools.cache
def _madvise() -> Callable[[int, int, int], int]:
    """madvise(2), which returns 0 or the number of an error. Python's own holds its lock meanwhile.

    Raises:
      OSError: this system has none that is known to populate.
    """
    if sys.platform != "linux":
        raise OSError("no system that populates pages")
    function = ctypes.CDLL(None, use_errno=True).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return lambda start, size, advice: ctypes.get_errno() if function(start, size, advice) else 0
