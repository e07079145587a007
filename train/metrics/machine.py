"""What the machine of this process has in use."""

import os
from pathlib import Path

import jax


def memory_in_use() -> dict[str, int]:
    """Bytes: `memory/device` and `memory/device_peak` of the fullest device of this host, where devices tell;
    `memory/host`, resident bytes of this process, where the operating system does."""
    told = {}
    stats = [found for device in jax.local_devices() if (found := device.memory_stats())]
    for name, key in (("memory/device", "bytes_in_use"), ("memory/device_peak", "peak_bytes_in_use")):
        if values := [own[key] for own in stats if key in own]:
            told[name] = max(values)
    statm = Path("/proc/self/statm")
    if statm.exists():
        told["memory/host"] = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return told
