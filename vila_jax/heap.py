"""Memory of the host's heap: what a program, not the library, settles for its whole process.

XLA's CPU programs allocate their temporaries anew at every call. glibc hands large blocks back to the kernel as soon as
they are freed, so that every call faults all of its pages in again. In a virtual machine of 2 cores that took up to
two thirds of the CPU time of training; the first steps with such settings (by environment variables of glibc) took
0.6 s instead of 1.6 s, later ones more again. Inference on a CPU was not made faster.

Python looks for cycles of references after every 700 new objects (3.11), and from time to time, and at its end, through
all that there are. Importing and tracing make some 450,000 that stay: of a start of 5.7 s on 2 cores that was 0.9 s.
"""

import ctypes
import gc
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # malloc.h
_MIB = 2**20


def keep_freed_memory() -> bool:
    """Lets this process keep the memory that it frees, for its own next use; True if that worked.

    Does nothing where the C library is not glibc.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2047 * _MIB), (_TOP_PAD, 64 * _MIB))
    return all(mallopt(option, value) for option, value in settings)


def collect_seldom() -> None:
    """Lets Python look for cycles after every 50,000 new objects, in place of some hundreds."""
    gc.set_threshold(50_000)
