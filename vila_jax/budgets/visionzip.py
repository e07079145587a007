"""VisionZip (Yang et al., CVPR 2025, arXiv 2412.04467): dominant tokens, and means of what resembles each other.

Of the tokens of a tile

    the first     is the class token itself, where the tower has one;
    dominant      are the patches that it attends to most, in the last block built;
    contextual    are made of all other patches: of these, in raster order, every `rest // contextual`-th is a target,
                  the others join the target whose key (mean over heads) is nearest by cosine, and the token is the
                  target plus the mean of those that joined it.

A tower without class token has only the last two kinds and scores with the attention that patches receive (the paper's
own substitute for SigLIP).

KEEP counts all three. Of `t` tokens `int(t * contextual)` are contextual; the default 10/64 gives the authors' 54 + 10,
108 + 20 and 162 + 30 (their "dominant" includes the class token) and EffiVLM-Bench's counts for SigLIP. The tokens of a
picture are shared evenly among its tiles, in proportion to what is not padding; the authors keep padding and give every
tile the same. The order of any-res tokens is theirs, see `merge.token_order`; neither keeps newline tokens.

Code: dvlab-research/VisionZip 3151f6d, `visionzip/clip_encoder.py`, `llava_arch.py`; paper and code agree. For SigLIP
EffiVLM-Bench/EffiVLM-Bench ab3ee18, which rounds contextual tokens to bfloat16, as is not done here.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vila_jax.budgets.allocate import over_tiles
from vila_jax.budgets.merge import group_weights, nearness, patch_of, take, token_order
from vila_jax.budgets.method import Plan, TokenMethod, resolve_block
from vila_jax.budgets.select import Selection, keep_top
from vila_jax.errors import BudgetError
from vila_jax.nn.config import VisionConfig
from vila_jax.vision.geometry import TileGeometry


@dataclasses.dataclass(frozen=True)
class VisionZip(TokenMethod):
    """VisionZip.

    Options:
      contextual: part of a tile's tokens that is contextual, in [0, 1).
      layer: block whose attention and keys are read; -1 is the last one built, which feeds the projector.
    """

    name: ClassVar[str] = "visionzip"
    merges: ClassVar[bool] = True

    contextual: float = 10 / 64
    layer: int = -1

    def __post_init__(self):
        if not 0 <= self.contextual < 1:
            raise BudgetError(
                f"contextual is {self.contextual}, but is the part of the tokens that are made of several patches",
                where="budget method 'visionzip'",
                fix="Give a number of at least 0 and below 1.",
            )

    def intermediates(self, vision: VisionConfig, depth: int) -> dict[str, str]:
        block = resolve_block(self.layer, depth, "layer")
        if not vision.has_class_token:
            return {"score": f"received_attention/{block}", "keys": f"keys/{block}"}
        return {"score": f"cls_attention/{block}", "keys": f"keys/{block}", "class_token": "class_token"}

    def extra(self, geometry: TileGeometry, total: int, max_tiles: int, salt: int) -> dict[str, np.ndarray]:
        del total, salt
        return {"order": token_order(geometry, max_tiles, whole_first=True)}

    def choose(self, inputs: Mapping[str, Float[Array, "I P N *width"]], plan: Plan, slots: int) -> Selection:
        tokens = over_tiles(plan.candidates, plan.total)
        whole = (tokens > 0) if "class_token" in inputs else jnp.zeros_like(tokens, bool)
        contextual = jnp.minimum(jnp.floor(tokens * jnp.float32(self.contextual)).astype(jnp.int32), tokens - whole)
        dominant = keep_top(inputs["score"], plan.candidates, tokens - contextual - whole)
        rest = plan.candidates & ~dominant
        targets = spread_targets(rest, contextual)
        numbers, valid = take(dominant, targets, whole, plan.extra["order"], slots)
        patches = dominant[0].size
        patch = patch_of(numbers, patches)
        joining = (rest & ~targets).reshape(rest.shape[0], -1)
        near = nearness(jnp.mean(inputs["keys"], axis=3), plan.candidates, jnp.where(numbers >= patches, patch, -1))
        weights = group_weights(patch, *_groups(near, patch, joining))
        if "class_token" in inputs:
            tiles = 2 * patches + jnp.arange(whole.shape[1], dtype=jnp.int32)
            weights = jnp.concatenate([weights, (numbers[:, :, None] == tiles[None, None]).astype(jnp.float32)], axis=2)
        return Selection(patch, valid, weights)


def spread_targets(rest: Bool[Array, "I P N"], counts: Int[Array, "I P"]) -> Bool[Array, "I P N"]:
    """Of the patches in `rest` every `rest // counts`-th, the first one included, `counts` in all."""
    rank = jnp.cumsum(rest, axis=-1, dtype=jnp.int32) - 1
    step = jnp.maximum(rest.sum(-1, dtype=jnp.int32) // jnp.maximum(counts, 1), 1)[..., None]
    return rest & (rank % step == 0) & (rank // step < counts[..., None])


def _groups(
    near: Float[Array, "I K M"], patch: Int[Array, "I K"], joining: Bool[Array, "I M"]
) -> tuple[Int[Array, "I M"], Float[Array, "I M"]]:
    """For every patch the one whose token it goes to, and with which weight: 1 for itself, a mean for who joins."""
    patches = near.shape[2]
    slot = jnp.argmax(near, axis=1)
    joined = jnp.take_along_axis(patch, slot, axis=1)
    joined = jnp.where(joining & (near.max(axis=1) > -jnp.inf), joined, -1)
    sizes = jnp.sum(patch[:, :, None] == joined[:, None, :], axis=2, where=(patch >= 0)[:, :, None])
    size = jnp.take_along_axis(sizes, slot, axis=1)
    group = jnp.where(joining, joined, jnp.arange(patches, dtype=jnp.int32)[None])
    return group, jnp.where(joining, 1.0 / jnp.maximum(size, 1), 1.0)
