"""What this machine is, and what it can do: the rates that floors are computed from, measured in a second or two."""

import dataclasses
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vila_jax.errors import VilaError
from vila_jax.nn.products import contract

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

BANDWIDTHS = {
    "NVIDIA B200": 8.0e12,
    "NVIDIA H200": 4.8e12,
    "NVIDIA H100 PCIe": 2.0e12,
    "NVIDIA H100 NVL": 3.9e12,
    "NVIDIA H100": 3.35e12,
    "NVIDIA A100-SXM4-80GB": 2.039e12,
    "NVIDIA A100-SXM4-40GB": 1.555e12,
    "TPU v4": 1.228e12,
    "TPU v5 lite": 0.819e12,
    "TPU v5e": 0.819e12,
    "TPU v5": 2.765e12,  # v5p
    "TPU v6 lite": 1.64e12,
    "TPU v6e": 1.64e12,
}
"""Bytes/s of device memory in data sheets, likewise."""

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
    known = _of_kind(PEAKS, kind)
    if known is not None and jnp.dtype(dtype) == jnp.bfloat16:
        return Peak(number * known, f"{number} x {kind} by data sheet")
    if devices[0].platform == "cpu":
        kind, number = cpu_name(), len({device.process_index for device in devices})
    return Peak(number * measure_matmul(dtype), f"{number} x {kind} by measured {jnp.dtype(dtype).name} products")


@dataclasses.dataclass(frozen=True)
class Rates:
    """What floors are computed from, of the default device.

    Attributes:
      flops: FLOP/s of matrix products.
      bandwidth: bytes/s between memory and processor, read and written.
      source: where the numbers are from.
    """

    flops: float
    bandwidth: float
    source: str


def rates(dtype: DTypeLike, *, data_sheet: bool = False) -> Rates:
    """The rates of the default device for products in `dtype`: measured, or those of its data sheet.

    Raises:
      VilaError: no data sheet is known.
    """
    device, name = jax.devices()[0], jnp.dtype(dtype).name
    if not data_sheet:
        kind = cpu_name() if device.platform == "cpu" else device.device_kind
        return Rates(measure_matmul(dtype), measure_bandwidth(), f"{kind} by measured {name} products and copies")
    flops, bandwidth = _of_kind(PEAKS, device.device_kind), _of_kind(BANDWIDTHS, device.device_kind)
    if flops is None or bandwidth is None or name != "bfloat16":
        what = f"no data sheet of {device.device_kind!r} in {name} is known"
        raise VilaError(what, where="--rates", fix="Use --rates measured.")
    return Rates(flops, bandwidth, f"{device.device_kind} by data sheet")


def _of_kind(table: Mapping[str, float], kind: str) -> float | None:
    """The value of the first name that the kind of a device begins with."""
    return next((value for name, value in table.items() if kind.startswith(name)), None)


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
    return contract("ij,jk->ik", a, a)


def _plus_one(a: Float[Array, " n"]) -> Float[Array, " n"]:
    return a + 1


def _seconds(function: Callable[[Array], Array], a: Array) -> tuple[float, Array]:
    start = time.perf_counter()
    result = jax.block_until_ready(function(a))
    return time.perf_counter() - start, result
