"""Freed memory stays with the process: a block that is allocated again is not faulted in again. Cycles wait."""

import ctypes
import gc
import resource
import subprocess
import sys

import pytest

from vila_jax.heap import keep_freed_memory

_PROGRAM = """
import ctypes, resource, sys
from vila_jax.heap import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
size = 64 << 20
def use():
    block = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(block, 1, size)
    libc.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(how: str) -> int:
    run = subprocess.run([sys.executable, "-c", _PROGRAM, how], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc alone")
def test_freed_memory_is_used_again():
    pages = 3 * (64 << 20) // resource.getpagesize()
    assert _faults("default") > pages / 1024  # huge pages, at the most
    assert _faults("keep") < pages / 1024


def test_cycles_are_looked_for_seldom():
    program = "import gc; from vila_jax.heap import collect_seldom; collect_seldom(); print(gc.get_threshold()[0])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(run.stdout) == 50_000 > gc.get_threshold()[0]  # those of Python, here


def test_elsewhere_it_does_nothing(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
