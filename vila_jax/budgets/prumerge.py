"""PruMerge and PruMerge+ (Shang et al., ICCV 2025, arXiv 2403.15388): kept patches take up what resembles them.

Of the `t` tokens of a tile

    t - 1      are patches: those that the class token attends to most; PruMerge+ takes a part of them (`top`) so, and
               for the others samples the tile evenly, in raster order. To each the 32 other patches are added whose
               keys are nearest by cosine, times the attention that they get;
    the last   is the sum of all patches that were not kept, times the attention that they get.

Attention is that of one head over the tower's whole width (`flat_cls_attention` of `vila_jax.nn.vit`). A tower without
class token takes the attention that patches receive, as EffiVLM-Bench does. A tile of one token has no last one.

The authors keep as many patches as are outliers of the attention (above Q3 + 1.5 IQR); here the budget says how many.
PruMerge+ samples about three times as many patches as it takes by attention, hence `top` is a quarter by default.
Differences between paper and code: the paper speaks of weighted averages, but the code divides by no weights, and here
it is not done either; kept tokens come by falling attention (`sort=score`), which tears the picture apart, so that
raster order is the default. Their samples are every `int(int(1 / ratio) / 3)`-th patch, for many ratios all of them or
none (`stride` gives that step); at a fixed count EffiVLM-Bench cuts the row of samples off, often before the middle of
the picture. With `top` and `stride` both are reproduced.

Deviations: the authors read attention and keys of the last block of CLIP (23), which feeds no projector and is not
built here; the default is the block before it, whose output does. Any-res pictures, of which the authors know nothing:
the tokens are shared evenly among the tiles, and ordered by `merge.token_order`.

Code: 42Shawn/LLaVA-PruMerge 097c041, `llava/model/multimodal_encoder/clip_encoder.py`; EffiVLM-Bench/EffiVLM-Bench
ab3ee18 for SigLIP.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from vila_jax.budgets.allocate import over_tiles
from vila_jax.budgets.merge import nearness, patch_of, take, token_order
from vila_jax.budgets.method import Plan, TokenMethod, resolve_block
from vila_jax.budgets.select import Selection, keep_top
from vila_jax.errors import BudgetError
from vila_jax.nn.config import VisionConfig
from vila_jax.vision.geometry import TileGeometry


@dataclasses.dataclass(frozen=True)
class PruMerge(TokenMethod):
    """PruMerge.

    Options:
      neighbours: patches that are added to every kept one.
      sort: `raster` keeps token order, `score` is the reference's: tile after tile by falling attention.
      layer: block whose attention and keys are read; -1 is the last one built, which feeds the projector.
    """

    name: ClassVar[str] = "prumerge"
    merges: ClassVar[bool] = True

    neighbours: int = 32
    sort: Literal["raster", "score"] = "raster"
    layer: int = -1

    def __post_init__(self):
        self._check_not_negative("neighbours")

    def _check_not_negative(self, option: str) -> None:
        if (value := getattr(self, option)) < 0:
            raise BudgetError(f"{option} is {value}, but must not be negative", where=f"budget method {self.name!r}")

    def intermediates(self, vision: VisionConfig, depth: int) -> dict[str, str]:
        block = resolve_block(self.layer, depth, "layer")
        kind = "cls" if vision.has_class_token else "received"
        return {"score": f"flat_{kind}_attention/{block}", "keys": f"keys/{block}"}

    def extra(self, geometry: TileGeometry, total: int, max_tiles: int, salt: int) -> dict[str, np.ndarray]:
        del total, salt
        return {"order": token_order(geometry, max_tiles, whole_first=False)}

    def pick(
        self, score: Float[Array, "I P N"], candidates: Bool[Array, "I P N"], counts: Int[Array, "I P"]
    ) -> tuple[Bool[Array, "I P N"], Bool[Array, "I P N"]]:
        """The patches to keep: those that attention chooses, and samples."""
        return keep_top(score, candidates, counts), jnp.zeros_like(candidates)

    def choose(self, inputs: Mapping[str, Float[Array, "I P N *width"]], plan: Plan, slots: int) -> Selection:
        score, keys = inputs["score"], inputs["keys"]
        tokens = over_tiles(plan.candidates, plan.total)
        has_rest = tokens > 1
        top, samples = self.pick(score, plan.candidates, tokens - has_rest)
        kept = top | samples
        order = plan.extra["order"] if self.sort == "raster" else by_score(score, top, plan.extra["order"])
        numbers, valid = take(kept, jnp.zeros_like(kept), has_rest, order, slots)
        patch = patch_of(numbers, kept[0].size)
        near = nearness(keys.reshape(*keys.shape[:3], -1), plan.candidates, patch)
        return Selection(patch, valid, self._weights(numbers, near, score, plan.candidates & ~kept))

    def _weights(
        self,
        numbers: Int[Array, "I K"],
        near: Float[Array, "I K M"],
        score: Float[Array, "I P N"],
        dropped: Bool[Array, "I P N"],
    ) -> Float[Array, "I K M"]:
        """One for a kept patch itself; the attention of its neighbours; for the last token that of what is dropped."""
        images, tiles, per_tile = score.shape
        patches = tiles * per_tile
        every = jnp.arange(patches, dtype=jnp.int32)[None, None]
        own = numbers[:, :, None] == every
        others = jnp.where(own, -jnp.inf, near)
        neighbours = keep_top(others, others > -jnp.inf, jnp.full(numbers.shape, self.neighbours, jnp.int32))
        rest = (numbers[:, :, None] == 2 * patches + every // per_tile) & dropped.reshape(images, 1, -1)
        attention = jnp.where(jnp.isfinite(score), score, 0.0).reshape(images, 1, -1)
        return own + jnp.where(neighbours | rest, attention, 0.0)


@dataclasses.dataclass(frozen=True)
class PruMergePlus(PruMerge):
    """PruMerge+.

    Options:
      top: patches of each tile that attention chooses; 0 is a quarter of all that are kept.
      stride: samples are the first of every `stride` patches of a tile, in raster order as far as the budget goes (what
        is then left goes to the best other patches); 0 spreads them evenly over the patches that are left.
    """

    name: ClassVar[str] = "prumerge+"

    top: int = 0
    stride: int = 0

    def __post_init__(self):
        super().__post_init__()
        self._check_not_negative("top")
        self._check_not_negative("stride")

    def pick(
        self, score: Float[Array, "I P N"], candidates: Bool[Array, "I P N"], counts: Int[Array, "I P"]
    ) -> tuple[Bool[Array, "I P N"], Bool[Array, "I P N"]]:
        top = keep_top(score, candidates, jnp.minimum(counts, self.top) if self.top else counts // 4)
        left, rest = counts - top.sum(-1, dtype=jnp.int32), candidates & ~top
        if not self.stride:
            return top, spread(rest, left)
        regular = (jnp.arange(score.shape[-1], dtype=jnp.int32) % self.stride == 0)[None, None]
        samples = keep_top(jnp.zeros_like(score), rest & regular, left)
        more = keep_top(score, rest & ~samples, left - samples.sum(-1, dtype=jnp.int32))
        return top, samples | more


def spread(rest: Bool[Array, "I P N"], counts: Int[Array, "I P"]) -> Bool[Array, "I P N"]:
    """So many of the patches in `rest`, evenly spaced in raster order, the first one included."""
    rank = jnp.cumsum(rest, axis=-1, dtype=jnp.int32) - 1
    size = rest.sum(-1, dtype=jnp.int32)[..., None]
    return rest & (rank * counts[..., None] % jnp.maximum(size, 1) < counts[..., None])


def by_score(
    score: Float[Array, "I P N"], top: Bool[Array, "I P N"], order: Int[Array, "I places"]
) -> Int[Array, "I places"]:
    """A token order, rearranged: tile after tile, of each the `top` patches by falling score, then the other tokens."""
    tiles, per_tile = score.shape[1:]
    patches = tiles * per_tile
    number, is_place = jnp.maximum(order, 0), order >= 0
    tile = jnp.where(number < 2 * patches, number % patches // per_tile, number - 2 * patches)
    is_patch = number < patches

    def of_patch(values: Shaped[Array, "I P N"]) -> Shaped[Array, "I places"]:
        return jnp.take_along_axis(values.reshape(values.shape[0], -1), number % patches, axis=1)

    is_top = is_patch & of_patch(top)
    fall = jnp.where(is_top, -of_patch(jnp.where(jnp.isnan(score), -jnp.inf, score)), 0.0)
    place = jax.lax.broadcasted_iota(jnp.int32, order.shape, 1)
    *_, rearranged = jax.lax.sort((~is_place, tile, ~is_top, fall, place, order), num_keys=5)
    return rearranged
