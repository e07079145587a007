"""What this machine is, and what it can do: the rates that floors are computed from, measured in a second or two."""

import dataclasses
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

PEAKS = {
    "NVIDIA B200": 2250e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,  # v5p
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}
"""FLOP/s of dense bfloat16 products in data sheets, by the beginning of JAX's `device_kind`; the first that fits."""

_LARGEST = 8192  # 8192^3 products reach the ceiling of today's accelerators
_SHORTEST = 0.05  # seconds; below it the call itself would be measured


def cpu_name() -> str:
    """Model of the processor, as the operating system calls it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@dataclasses.dataclass(frozen=True)
class Peak:
    """What devices could do at best.

    Attributes:
      flops: FLOP/s of all of them.
      source: where the number is from, e.g. `8 x NVIDIA H200 by data sheet`.
    """

    flops: float
    source: str


def peak(devices: Sequence[Any], dtype: DTypeLike) -> Peak:
    """The peak of equal JAX devices for products in `dtype`: by data sheet where it says so, else measured.

    Virtual devices of one CPU share its cores, so that each process counts once there.
    """
    kind, number = devices[0].device_kind, len(devices)
    known = [value for name, value in PEAKS.items() if kind.startswith(name)]
    if known and jnp.dtype(dtype) == jnp.bfloat16:
        return Peak(number * known[0], f"{number} x {kind} by data sheet")
    if devices[0].platform == "cpu":
        kind, number = cpu_name(), len({device.process_index for device in devices})
    return Peak(number * measure_matmul(dtype), f"{number} x {kind} by measured {jnp.dtype(dtype).name} products")


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
