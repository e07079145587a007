"""What is cut together: the tensors of an MLP or of an attention, and the units that they share.

A *unit* is what is removed as a whole. Along one axis of each tensor it owns a run of neighbouring entries:

    MLP of the tower       channel         one row of fc1 (weight, bias), one column of fc2
    MLP of the decoder     channel         one row of gate and up, one column of down
    attention              key/value head  H rows of k and v, (N / K) H rows of q, as many columns of out

so that the network without them is the network with those columns of fc2, down or out set to zero.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from vila_jax.hf.checkpoint import Checkpoint
from vila_jax.hf.out_tensor import OutTensor
from vila_jax.nn.config import VLMConfig

Kind = Literal["vision_ffn", "ffn", "heads"]

_AXES: dict[Kind, dict[str, int]] = {  # the axis along which units lie, by the end of our path
    "vision_ffn": {"fc1.weight": 0, "fc1.bias": 0, "fc2.weight": 1},
    "ffn": {
        "mlp.gate.weight": 0,
        "mlp.gate.bias": 0,
        "mlp.up.weight": 0,
        "mlp.up.bias": 0,
        "mlp.down.weight": 1,
    },
    "heads": {
        "attn.q.weight": 0,
        "attn.q.bias": 0,
        "attn.k.weight": 0,
        "attn.k.bias": 0,
        "attn.v.weight": 0,
        "attn.v.bias": 0,
        "attn.out.weight": 1,
    },
}
_POOLING_HEAD = re.compile(r"vision_model\.head\.mlp\.(fc[12]\.(?:weight|bias))$")
"""SigLIP's: no model here has a use for it, but its width is that of the blocks in every config."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One MLP or attention.

    Attributes:
      name: our path of the layer, with what is cut there: `decoder.layers.3/ffn`.
      axes: name in the checkpoint of every tensor that is cut -> the axis along which its units lie.
      units: how many there are.
      kept: how many remain.
    """

    name: str
    axes: Mapping[str, int]
    units: int
    kept: int

    def cut(self, tensor: OutTensor, chosen: Int[np.ndarray, " kept"]) -> OutTensor:
        """A tensor of this part with the chosen units alone."""
        axis = self.axes[tensor.name]
        entries = tensor.shape[axis] // self.units
        index = (chosen[:, None] * entries + np.arange(entries)).reshape(-1)
        shape = (*tensor.shape[:axis], len(index), *tensor.shape[axis + 1 :])
        return tensor.edited(lambda values: np.take(values, index, axis=axis), shape)


def find_parts(checkpoint: Checkpoint, after: VLMConfig) -> list[Part]:
    """Every part of which something is removed, also of blocks that the model does not build.

    Args:
      after: config of the pruned network.
    """
    before = checkpoint.config.vlm
    units: dict[Kind, tuple[int, int]] = {
        "vision_ffn": (before.vision.intermediate_size, after.vision.intermediate_size),
        "ffn": (before.decoder.intermediate_size, after.decoder.intermediate_size),
        "heads": (before.decoder.num_kv_heads, after.decoder.num_kv_heads),
    }
    found: dict[tuple[str, Kind], dict[str, int]] = {}
    for name in checkpoint.locations:
        path = _path(checkpoint, name)
        for kind, axes in _AXES.items():
            layer, leaf = _split(path, kind)
            if leaf in axes and units[kind][0] != units[kind][1]:
                found.setdefault((layer, kind), {})[name] = axes[leaf]
    return [Part(part_name(layer, kind), axes, *units[kind]) for (layer, kind), axes in found.items()]


def part_name(layer: str, kind: Kind) -> str:
    """Name of a part by our path of its layer."""
    return f"{layer}/{kind}"


def _path(checkpoint: Checkpoint, name: str) -> str:
    """Our path of a tensor; one of our making for those of SigLIP's pooling head, empty for others without one."""
    path = checkpoint.table.from_hf(name)
    pooling = _POOLING_HEAD.search(checkpoint.table.canonical(name))
    return f"vision_tower.head.{pooling[1]}" if path is None and pooling else path or ""


def _split(path: str, kind: Kind) -> tuple[str, str]:
    """`decoder.layers.3.mlp.up.weight` -> the layer and the rest; two empty texts if the tower is not meant, or is."""
    owner = "vision_tower" if kind == "vision_ffn" else "decoder"
    match = re.fullmatch(rf"({owner}\.(?:layers\.\d+|head))\.(.+)", path)
    return (match[1], match[2]) if match else ("", "")


def magnitude(part: Part, tensors: Iterable[OutTensor]) -> Float[np.ndarray, " units"]:
    """The L2 norm of all weights of every unit, biases left out; one tensor is in memory at a time."""
    total = np.zeros(part.units, np.float64)
    for tensor in tensors:
        if len(tensor.shape) == 2:
            values = np.moveaxis(tensor.values().astype(np.float32), part.axes[tensor.name], 0)
            total += np.einsum("ui,ui->u", *[values.reshape(part.units, -1)] * 2, dtype=np.float64)
    return np.sqrt(total)


def strongest(scores: Float[np.ndarray, " units"], kept: int) -> Int[np.ndarray, " kept"]:
    """The units of the highest scores in their order; of equal ones the first, and NaN last."""
    return np.sort(np.argsort(-scores, kind="stable")[:kept])
