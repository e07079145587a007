"""HiPrune (Liu et al., AAAI 2026, arXiv 2508.00553): objects from a middle block, context from the last.

Both scores are the attention that a patch *receives*, averaged over heads and all queries. Of the `T` tokens of a tile

    anchors    round(T * alpha / 5): most attended in the object block, where attention lies on the main objects;
    buffers    the four neighbours of every anchor;
    registers  what is left: most attended in the last block, where attention is spread over the whole picture.

Published code: Danielement321/HiPrune, 6e83a12. There neighbours are counted in raster order: the right neighbour of
the last patch of a row is the first of the next row, and what lies outside the tile is its first or last patch.
`variant=code` does so; by default a patch at the edge has fewer neighbours. The code numbers blocks from 1
(`HIPRUNE_OBJECT_LAYER=9`), this page from 0. Where a small `T` cannot hold all anchors and buffers, the code stops;
here anchors come first, then the buffers that are most attended in the last block. Tiles share the tokens in proportion
to what they show of the picture; without padding that is the same number each, as in the code.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vila_jax.budgets.method import TileSelector, check_part, resolve_block
from vila_jax.budgets.select import keep_top
from vila_jax.nn.config import VisionConfig


@dataclasses.dataclass(frozen=True)
class HiPrune(TileSelector):
    """HiPrune.

    Options:
      positions: see `Selector`.
      alpha: part of the tokens that goes to anchors and buffers, in [0, 1].
      object_layer: block (0-based) whose attention finds the anchors; the default is that of CLIP-L with 24 blocks.
      layer: block whose attention scores buffers and registers; -1 is the last one built, which feeds the projector.
      variant: `paper` or `code`, see above.
    """

    name: ClassVar[str] = "hiprune"

    alpha: float = 0.1
    object_layer: int = 8
    layer: int = -1
    variant: Literal["paper", "code"] = "paper"

    def __post_init__(self):
        check_part(self.alpha, "alpha", "the part of the tokens for anchors and their neighbours", self.name)

    def intermediates(self, vision: VisionConfig, depth: int) -> dict[str, str]:
        del vision
        return {
            "objects": f"received_attention/{resolve_block(self.object_layer, depth, 'object_layer')}",
            "score": f"received_attention/{resolve_block(self.layer, depth, 'layer')}",
        }

    def keep_in_tiles(
        self,
        inputs: Mapping[str, Float[Array, "I P N *width"]],
        candidates: Bool[Array, "I P N"],
        counts: Int[Array, "I P"],
    ) -> Bool[Array, "I P N"]:
        patches = candidates.shape[-1]
        # A table, because the last bit of a device's product could change what rounding makes of it.
        anchors = np.round(np.arange(patches + 1) * self.alpha / 5).astype(np.int32)
        keep = keep_top(inputs["objects"], candidates, jnp.asarray(anchors)[counts])
        around = _spread(keep, neighbours(math.isqrt(patches), wrap=self.variant == "code"))
        for allowed in (around, jnp.ones_like(around)):
            keep |= keep_top(inputs["score"], candidates & allowed & ~keep, counts - keep.sum(-1, dtype=jnp.int32))
        return keep


def neighbours(side: int, wrap: bool) -> Int[np.ndarray, "4 N"]:
    """The patches left, right, above and below of every patch of a square tile, itself where there is none.

    With `wrap` the next and previous ones in raster order, and outside of the tile its first or last patch.
    """
    patch = np.arange(side * side, dtype=np.int32)
    row, column = np.divmod(patch, side)
    moved = np.stack([patch - 1, patch + 1, patch - side, patch + side])
    if wrap:
        return np.clip(moved, 0, side * side - 1)
    exists = np.stack([column > 0, column < side - 1, row > 0, row < side - 1])
    return np.where(exists, moved, patch)


def _spread(mask: Bool[Array, "I P N"], to: Int[np.ndarray, "4 N"]) -> Bool[Array, "I P N"]:
    """Marks the neighbours of what is marked."""
    times = jnp.zeros(mask.shape, jnp.int32).at[..., to].add(mask[..., None, :].astype(jnp.int32))
    return times > 0
