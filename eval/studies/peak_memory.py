"""How much memory a network takes at its peak, measured in a process of its own.

XLA's plan of a program for CPUs does not tell: it leaves out what the library YNNPACK takes, to which it gives the
convolutions. How much of a map is in memory at a time is then for YNNPACK to decide, and differs from size to size of a
network. What the sizes themselves need is seen where XLA computes the convolutions, map by map.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from eval.studies.small_cnn import Shape, SmallCNN

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # whatever is larger is new memory, and is returned when it is freed
_PLAIN = "--xla_cpu_experimental_ynn_fusion_type="  # gives nothing to YNNPACK


def peak_bytes(shape: Shape, batch: int, *, plain: bool = False) -> int | None:
    """Memory of a batch at its peak: weights, pictures, and what the compiled program needs besides.

    Args:
      plain: whether XLA computes the convolutions by itself.

    Returns:
      Bytes, in whole pages; None where the system does not tell (it is not Linux), or XLA does not know the option.
    """
    if not _RESET.exists():
        return None
    own = [sys.executable, "-m", __name__, json.dumps(dataclasses.asdict(shape)), str(batch)]
    flags = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {_PLAIN}"} if plain else {}
    done = subprocess.run(own, env=os.environ | _MALLOC | flags, stdout=subprocess.PIPE, text=True, check=not plain)
    return None if done.returncode else int(done.stdout)


def _measure(shape: Shape, batch: int) -> int:
    """The peak over what the process held when the program was compiled, while it runs once."""
    graph, abstract = nnx.split(nnx.eval_shape(lambda: SmallCNN(shape, rngs=nnx.Rngs(0))))
    pictures = jax.ShapeDtypeStruct((batch, shape.side, shape.side, 1), np.float32)

    def forward(state: nnx.State, pictures: Float[Array, "B h w 1"]) -> Float[Array, "B 10"]:
        return nnx.merge(graph, state)(pictures)

    compiled = jax.jit(forward).lower(abstract, pictures).compile()

    _RESET.write_text("5")
    before = _resident("VmRSS")
    made = jax.tree.map(lambda leaf: jax.device_put(np.ones(leaf.shape, leaf.dtype)), (abstract, pictures))
    jax.block_until_ready(compiled(*made))
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    """A line of the process's status, in bytes."""
    [line] = [line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:")]
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    sizes = json.loads(sys.argv[1])
    print(_measure(Shape(sizes["side"], sizes["stride"], tuple(sizes["widths"])), int(sys.argv[2])))
