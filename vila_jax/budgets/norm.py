"""Norm: of every tile the patches whose features are longest (or shortest).

A baseline that reads nothing but the features. Long ones are the default: norms are the usual proxy of importance, and
in large ViTs the longest features are those that hold information about the whole picture and that the class token
attends to (Darcet et al., "Vision Transformers Need Registers", ICLR 2024, arXiv 2309.16588). The same paper finds
them on patches that show little themselves, which speaks for `which=low` where a task hangs on local detail.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vila_jax.budgets.method import TileSelector
from vila_jax.budgets.select import keep_top
from vila_jax.nn.config import VisionConfig


@dataclasses.dataclass(frozen=True)
class Norm(TileSelector):
    """L2 norm of what the projector reads.

    Options:
      positions: see `Selector`.
      which: `high` keeps the longest features, `low` the shortest.
    """

    name: ClassVar[str] = "norm"
    nested: ClassVar[bool] = True

    which: Literal["high", "low"] = "high"

    def intermediates(self, vision: VisionConfig, depth: int) -> dict[str, str]:
        del vision, depth
        return {"features": "features"}

    def keep_in_tiles(
        self,
        inputs: Mapping[str, Float[Array, "I P N *width"]],
        candidates: Bool[Array, "I P N"],
        counts: Int[Array, "I P"],
    ) -> Bool[Array, "I P N"]:
        norms = jnp.linalg.norm(inputs["features"].astype(jnp.float32), axis=-1)
        return keep_top(norms if self.which == "high" else -norms, candidates, counts)
