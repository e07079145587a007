"""FasterVLM (Zhang et al., arXiv 2412.01818v1): of every tile the patches that the class token attends to most.

Published code: Theia-4869/FasterVLM, f5d5f12, whose choice the default reproduces: attention averaged over heads, the
block that feeds the projector, the same number of every tile, raster order. Here a tile that is part padding gets less,
in proportion to what it shows, and padding is never kept.

`cls` is another name for it. A tower without class token (SigLIP) has the attention that a patch *receives*, averaged
over all queries, in its place.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from jaxtyping import Array, Bool, Float, Int

from vila_jax.budgets.method import TileSelector, class_attention
from vila_jax.budgets.select import keep_top
from vila_jax.nn.config import VisionConfig


@dataclasses.dataclass(frozen=True)
class FasterVLM(TileSelector):
    """FasterVLM.

    Options:
      positions: see `Selector`.
      layer: block (0-based) whose attention scores the patches; -1 is the last one built, which feeds the projector.
    """

    name: ClassVar[str] = "fastervlm"
    nested: ClassVar[bool] = True

    layer: int = -1

    def intermediates(self, vision: VisionConfig, depth: int) -> dict[str, str]:
        return {"score": class_attention(vision, depth, self.layer, "layer")}

    def keep_in_tiles(
        self,
        inputs: Mapping[str, Float[Array, "I P N *width"]],
        candidates: Bool[Array, "I P N"],
        counts: Int[Array, "I P"],
    ) -> Bool[Array, "I P N"]:
        return keep_top(inputs["score"], candidates, counts)
