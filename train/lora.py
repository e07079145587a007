"""LoRA: low-rank additions to the linear layers of tower or decoder, and what becomes of them on export.

VILA trains rank 64, alpha 16 on all linear layers but the head (`llava/train/train.py`); the projector is always
trained whole. Dropout, 0.05 there, is left out.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from flax import nnx

from train.weights import GROUPS
from vila_jax.errors import ConfigError
from vila_jax.nn.layers import Linear, LowRank
from vila_jax.nn.vlm import VLM


@dataclasses.dataclass(frozen=True)
class Lora:
    """What is added.

    Attributes:
      rank: width between the two matrices of an addition.
      groups: which parts of the model get additions.
      alpha: the additions are scaled by `alpha / rank`.
    """

    rank: int = 64
    alpha: float = 16.0
    groups: tuple[str, ...] = ("decoder",)


def add(model: VLM, lora: Lora, *, rngs: nnx.Rngs) -> None:
    """Gives the linear layers of these groups their additions; the model computes what it did before.

    Raises:
      ConfigError: a group that takes none, or a rank below 1.
    """
    if lora.rank < 1:
        raise ConfigError(f"got {lora.rank}", where="lora.rank", fix="Use 1 or more.")
    for group in lora.groups:
        if group not in ("tower", "decoder"):
            raise ConfigError(
                f"{group!r} takes no low-rank additions", where="lora.groups", fix="Use tower or decoder."
            )
        for linear in _linears(model, group):
            out_features, in_features = linear.weight.get_value().shape
            axes, dtype = linear.weight.get_metadata()["logical_axes"], linear.weight.get_value().dtype
            scale = lora.alpha / lora.rank
            linear.lora = nnx.data(LowRank(in_features, out_features, axes, lora.rank, scale, rngs=rngs, dtype=dtype))


def merge(model: VLM) -> None:
    """Makes every addition a part of its weight, and takes it away."""
    for group in GROUPS:
        for linear in _linears(model, group):
            if linear.lora is not None:
                weight = linear.weight[...]
                linear.weight[...] = weight + linear.lora.product().astype(weight.dtype)
                linear.lora = nnx.data(None)


def _linears(model: VLM, group: str) -> Iterator[Linear]:
    for head in GROUPS[group]:
        part: Any = getattr(model, head)
        if isinstance(part, nnx.Module):
            yield from (module for _, module in nnx.iter_modules(part) if isinstance(module, Linear))
