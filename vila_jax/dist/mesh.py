"""The device mesh: always the same four axes, so that rules and modules can name them on any machine."""

import math
import re
from collections.abc import Mapping

import jax
from jax.sharding import AxisType, Mesh

from vila_jax.errors import ConfigError

AXES = ("data", "fsdp", "tensor", "sequence")
"""`data` replicates weights, `fsdp` shards weights and batch, `tensor` splits heads and widths, `sequence` tokens."""


def make_mesh(axes: Mapping[str, int]) -> Mesh:
    """A mesh over all devices (of all processes).

    Args:
      axes: size per axis name; absent axes have size 1, and at most one may be -1, which takes what is left.

    Raises:
      ConfigError: an unknown axis, or sizes whose product is not the number of devices.
    """
    unknown = sorted(set(axes) - set(AXES))
    if unknown:
        raise ConfigError(f"unknown mesh axis {unknown[0]!r}", where="mesh", fix=f"Supported: {', '.join(AXES)}.")
    sizes = {name: axes.get(name, 1) for name in AXES}
    devices = jax.device_count()
    open_axes = [name for name, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    if len(open_axes) == 1 and known > 0:
        sizes[open_axes[0]] = devices // known
    if min(sizes.values()) < 1 or math.prod(sizes.values()) != devices:
        given = ", ".join(f"{name}={size}" for name, size in axes.items())
        raise ConfigError(
            f"{given or 'no axes'} cannot be laid over {devices} devices",
            where="mesh",
            fix=f"The product of the sizes has to be {devices}; one of them may be -1.",
        )
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def parse_axes(text: str) -> dict[str, int]:
    """`fsdp=4,tensor=2` -> sizes for `make_mesh`.

    Raises:
      ConfigError: anything else.
    """
    sizes: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, _, size = part.partition("=")
        if not re.fullmatch(r"-1|[1-9]\d*", size) or name in sizes:
            raise ConfigError(f"got {part!r} in {text!r}", where="mesh", fix="Write AXIS=SIZE, with commas between.")
        sizes[name] = int(size)
    return sizes
