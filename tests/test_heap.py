"""Freed memory stays with the process: temporaries that are allocated again are not faulted in again."""

import ctypes
import subprocess
import sys

import pytest

from vila_jax.heap import keep_freed_memory

_PROGRAM = """
import resource, sys
if sys.argv[1] == "keep":
    from vila_jax.heap import keep_freed_memory
    assert keep_freed_memory()
import jax, jax.numpy as jnp
def attend(x):
    for _ in range(4):
        x = jax.nn.softmax(x @ x.T) @ x
    return (x**2).sum()
program = jax.jit(jax.grad(attend))
def use():
    for _ in range(3):
        program(jnp.ones((1500, 16))).block_until_ready()
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(how: str) -> int:
    """Pages that were faulted in by a program of XLA, which allocates in threads of its own."""
    run = subprocess.run([sys.executable, "-c", _PROGRAM, how], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc alone")
def test_freed_memory_is_used_again():
    assert _faults("keep") < _faults("default") / 2


def test_elsewhere_it_does_nothing(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
