"""Memory of the host's heap.

XLA's CPU programs allocate their temporaries anew at every call. glibc hands large blocks back to the kernel as soon as
they are freed, so that every call faults all of its pages in again. In a virtual machine of 2 cores that took up to
two thirds of the CPU time of training; the first steps with such settings (by environment variables of glibc) took
0.6 s instead of 1.6 s, later ones more again. Inference on a CPU was not made faster.
"""

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # malloc.h
_MIB = 2**20


def keep_freed_memory() -> bool:
    """Lets this process keep the memory that it frees, for its own next use; True if that worked.

    For programs, not for importers of the library. Does nothing where the C library is not glibc.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2047 * _MIB), (_TOP_PAD, 64 * _MIB))
    return all(mallopt(option, value) for option, value in settings)
