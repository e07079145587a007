"""What this machine is, and what it can do: the rates that floors are computed from, measured in a second or two."""

import platform
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

_LARGEST = 8192  # 8192^3 products reach the ceiling of today's accelerators
_SHORTEST = 0.05  # seconds; below it the call itself would be measured


def cpu_name() -> str:
    """Model of the processor, as the operating system calls it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measure_matmul(dtype: DTypeLike, seconds: float = 0.3) -> float:
    """FLOP/s of a square matrix product at JAX's default precision, on the default device.

    The matrices grow until one product takes long enough to be timed, so that slow machines are not kept busy. The best
    of as many runs as fit into `seconds` counts.
    """
    product = jax.jit(_product)
    size = 256
    while True:
        a = jax.random.normal(jax.random.key(0), (size, size), jnp.float32).astype(dtype)
        jax.block_until_ready(product(a))  # compiles
        took = _seconds(product, a)[0]
        if size >= _LARGEST or took >= _SHORTEST:
            break
        size *= 2
    best, end = took, time.perf_counter() + seconds
    while time.perf_counter() < end:
        best = min(best, _seconds(product, a)[0])
    return 2 * size**3 / best


def measure_bandwidth(seconds: float = 0.3, size: int | None = None) -> float:
    """Bytes/s, read and written, of a pass over an array too large for caches, on the default device.

    Args:
      size: bytes of the array; by default 1 GiB on accelerators and 256 MiB on CPUs.
    """
    size = size or (2**28 if jax.default_backend() == "cpu" else 2**30)
    step = jax.jit(_plus_one, donate_argnums=0)  # in place: fresh memory would be timed by its page faults
    a = jax.block_until_ready(step(jnp.zeros(size // 4, jnp.float32)))
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        took, a = _seconds(step, a)
        best = min(best, took)
    return 2 * size / best


def _product(a: Float[Array, "n n"]) -> Float[Array, "n n"]:
    return a @ a


def _plus_one(a: Float[Array, " n"]) -> Float[Array, " n"]:
    return a + 1


def _seconds(function: Callable[[Array], Array], a: Array) -> tuple[float, Array]:
    start = time.perf_counter()
    result = jax.block_until_ready(function(a))
    return time.perf_counter() - start, result
