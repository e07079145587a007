"""Says what vila-jax runs on here, and how fast: versions, devices, attention, compile cache, measured rates."""

import argparse
import importlib.metadata
import os
import platform
from typing import Any

from vila_jax.cli import arguments, terminal, units

SUMMARY = "show versions, devices and measured speeds"

_PACKAGES = ("jax", "jaxlib", "flax", "transformers", "numpy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `vila-jax doctor`."""
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Looks around, and measures for a few seconds."""
    from vila_jax.cli.cache import enable_compile_cache
    from vila_jax.cli.progress import Progress

    folder = enable_compile_cache()
    with Progress(enabled=not args.json) as progress:
        progress.phase("looking at the devices")
        facts: dict[str, Any] = {
            "versions": _versions(),
            "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
            "devices": _devices(),
            **_choices(),
            "compile_cache": _cache(folder),
        }
        progress.phase("measuring")
        facts["measured"] = _measure()
    if args.json:
        terminal.print_json(facts)
    else:
        _print(facts)
    return 0


def _versions() -> dict[str, str]:
    import vila_jax

    versions = {"vila_jax": vila_jax.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _devices() -> list[dict[str, Any]]:
    import jax

    found = []
    for device in jax.devices():
        stats = device.memory_stats() or {}
        found.append({"kind": device.device_kind, "platform": device.platform, "memory": stats.get("bytes_limit")})
    return found


def _choices() -> dict[str, Any]:
    """What is chosen where the user chooses nothing, and why."""
    import jax
    import jax.numpy as jnp

    from vila_jax.hf.load import default_dtype
    from vila_jax.nn.attention import choose_implementation

    backend, dtype = jax.default_backend(), jnp.dtype(default_dtype())
    chosen = choose_implementation(dtype, 128, backend)
    if chosen != "xla":
        why = "flash attention, works on this device"
    elif backend == "gpu":
        why = "cuDNN attention failed its trial on this device"
    elif backend == "tpu":
        why = "splash attention " + ("is for a single device" if jax.device_count() > 1 else "failed its trial")
    else:
        why = f"no flash kernel for {backend}"
    reason = "on CPUs decoding in bfloat16 is many times slower" if backend == "cpu" else "half the bytes of float32"
    return {"dtype": {"default": dtype.name, "why": reason}, "attention": {"implementation": chosen, "why": why}}


def _cache(folder: Any) -> dict[str, Any]:
    from vila_jax.cli.cache import cache_folder, cache_size

    if folder is None:
        wanted = cache_folder()
        state = "switched off" if wanted is None else f"off, {wanted} cannot be written to"
        return {"folder": None, "state": state, "files": 0, "bytes": 0}
    files, size = cache_size(folder)
    return {"folder": str(folder), "state": "on", "files": files, "bytes": size}


def _measure() -> dict[str, float]:
    from vila_jax.bench.machine import measure_bandwidth, measure_matmul

    return {
        "matmul_float32_flops_per_s": measure_matmul("float32"),
        "matmul_bfloat16_flops_per_s": measure_matmul("bfloat16"),
        "bandwidth_bytes_per_s": measure_bandwidth(),
    }


def _print(facts: dict[str, Any]) -> None:
    versions, cache, measured = facts["versions"], facts["compile_cache"], facts["measured"]
    dtype, attention = facts["dtype"], facts["attention"]
    table = terminal.table(None, header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    table.add_row("versions", ", ".join(f"{name} {version}" for name, version in versions.items()))
    table.add_row("platform", facts["platform"])
    for i, device in enumerate(facts["devices"]):
        memory = "" if device["memory"] is None else f", {units.size(device['memory'])}"
        kind = device["kind"] if device["kind"] == device["platform"] else f"{device['kind']} ({device['platform']})"
        table.add_row(f"device {i}", terminal.plain(f"{kind}{memory}"))
    table.add_row("dtype", f"{dtype['default']} by default: {dtype['why']}")
    table.add_row("attention", f"{attention['implementation']}: {attention['why']}")
    content = f"{cache['folder']}, {cache['files']} files, {units.size(cache['bytes'])}"
    table.add_row("compile cache", terminal.plain(cache["state"] if cache["folder"] is None else content))
    for name in ("float32", "bfloat16"):
        table.add_row(f"matmul {name}", units.rate(measured[f"matmul_{name}_flops_per_s"], "FLOP/s"))
    table.add_row("bandwidth", f"{units.rate(measured['bandwidth_bytes_per_s'], 'B/s')} read and written")
    terminal.stdout().print(table)
