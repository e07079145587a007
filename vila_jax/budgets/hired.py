"""HiRED (Arif et al., AAAI 2025, arXiv 2408.10945): tokens that the class token attends to.

A picture is an overview tile and full-resolution tiles. Of its `total` tokens

    overview    gets the part alpha;
    tiles       share the rest by how much the class token of the *first* block attends, in the overview, to the region
                that each tile shows in full resolution (Eq. 1);
    each tile   keeps the patches to which its own class token attends most in the *last* block used (Eq. 2).

A picture of a single tile (LLaVA-1.5) simply keeps its best `total` patches. A picture without overview (the blocks of
NVILA's dynamic S2) shares all tokens among its blocks by their own attention in the first block of the tower.

A tower without class token (SigLIP) has no such attention; in its place stands the attention that a patch *receives*,
averaged over all queries, as in VisionZip (arXiv 2412.04467). Where the projector merges windows of patches into one
token, scores are summed over each window, and "patch" below means such a cell.

Paper and published code (hasanar1f/HiRED, 502d6dd) differ. `variant=paper`, the default, is Eq. 1 with the regions of
the grid, roundings shared out by the largest remainder, and never a token spent on padding: exactly `total` tokens are
kept. `variant=code` keeps what the code keeps, oddities included:

* a region's score is the number, not the sum, of its patches among the `int(N * (1 - alpha))` best of the overview;
* a region is a horizontal strip, `N / tiles` patches in raster order, whatever the grid is;
* shares are truncated in float32 and clamped to `N`, the rest is lost;
* padding is scored like picture, and what is kept of it vanishes when the tokens are packed;
* rows and columns of the grid are exchanged in packing, which cuts off most of a non-square grid (`swap=false` undoes
  this one alone).

Where the code divides 0 by 0 and stops (alpha so near 1 that `int(N * (1 - alpha))` is 0), tiles share evenly here.
Neither keeps newline tokens.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from vila_jax.budgets.allocate import largest_remainder
from vila_jax.budgets.method import Plan, Selector, check_part, class_attention
from vila_jax.budgets.select import keep_top
from vila_jax.errors import BudgetError
from vila_jax.nn.config import VisionConfig
from vila_jax.vision.geometry import TileGeometry


@dataclasses.dataclass(frozen=True)
class Hired(Selector):
    """HiRED.

    Options:
      positions: see `Selector`.
      alpha: part of the tokens that goes to the overview, in [0, 1].
      variant: `paper` or `code`, see above.
      swap: with `variant=code`, exchange rows and columns in packing as the reference does.
      first_layer: block (0-based) whose attention says how much content a region has.
      score_layer: block whose attention scores the patches; -1 is the last one built, which feeds the projector.

    Intermediates (attention summed over heads, `[I, P, N]`): `content` of `first_layer`, of which only
    the overview is read, and `score` of `score_layer`.
    """

    name: ClassVar[str] = "hired"
    nested: ClassVar[bool] = True

    alpha: float = 0.5
    variant: Literal["paper", "code"] = "paper"
    swap: bool = True
    first_layer: int = 0
    score_layer: int = -1

    def __post_init__(self):
        check_part(self.alpha, "alpha", "the part of the tokens for the overview", self.name)
        if self.variant == "paper" and not self.swap:
            raise BudgetError(
                "swap=false undoes an exchange that variant=paper does not make",
                where="budget method 'hired'",
                fix="Add variant=code, or leave swap out.",
            )
        if self.variant == "code" and self.swap and self.positions == "original":
            raise BudgetError(
                "original positions ascend in the order of the picture, which the exchange of rows and columns breaks",
                where="budget method 'hired'",
                fix="Add swap=false, or leave variant=code out.",
            )

    @property
    def full_is_unbudgeted(self) -> bool:
        return self.variant == "paper"  # the reference's own full run has no newline tokens

    def intermediates(self, vision: VisionConfig, depth: int) -> dict[str, str]:
        return {
            "content": class_attention(vision, depth, self.first_layer, "first_layer"),
            "score": class_attention(vision, depth, self.score_layer, "score_layer"),
        }

    def candidates(self, geometry: TileGeometry) -> Bool[np.ndarray, "P N"]:
        if self.variant == "paper":
            return geometry.real()
        return np.ones((geometry.num_tiles, geometry.patches_per_tile), bool)

    def order(self, geometry: TileGeometry) -> Int[np.ndarray, " tokens"]:
        if self.variant == "code" and self.swap and geometry.grid is not None:
            rows, columns = geometry.grid
            geometry = dataclasses.replace(geometry, grid=(columns, rows))
        return geometry.order()

    def extra(self, geometry: TileGeometry, total: int, max_tiles: int, salt: int) -> dict[str, np.ndarray]:
        """`overview` tokens, the tile (1-based, 0 is the overview) of each `region`; for `quota` see `_quota`."""
        del max_tiles, salt
        if geometry.arrangement == "blocks":
            return self._without_overview(geometry)
        tiles, patches = geometry.num_tiles - 1, geometry.patches_per_tile
        everything = total == geometry.num_tiles * patches
        overview = total if everything or tiles == 0 else int(total * self.alpha)
        overview = min(overview, patches)
        region = geometry.regions() if self.variant == "paper" else np.arange(patches) * max(tiles, 1) // patches
        extra = {
            "has_overview": np.asarray(True),
            "overview": np.asarray(overview, np.int32),
            "region": (region + 1).astype(np.int32),
        }
        if self.variant == "code":
            rest = min(total - overview, tiles * patches)
            # The reference passes its selection by when it keeps everything.
            extra["quota"] = (
                np.full(patches + 1, patches, np.int32) if everything else self._quota(tiles, patches, rest)
            )
        return extra

    def _without_overview(self, geometry: TileGeometry) -> dict[str, np.ndarray]:
        if self.variant == "code":
            raise BudgetError(
                "the published code knows pictures with an overview tile only, and this model makes none",
                where="budget method 'hired'",
                fix="Leave variant=code out.",
            )
        return {
            "has_overview": np.asarray(False),
            "overview": np.asarray(0, np.int32),
            "region": np.zeros(geometry.patches_per_tile, np.int32),
        }

    def _quota(self, tiles: int, patches: int, rest: int) -> Int[np.ndarray, " counts"]:
        """Tokens of a tile, out of `rest`, by the number (0 to `N`) of content patches in its strip.

        A table, because the reference's result hangs on the last bit of a float32 quotient, which no accelerator
        promises.
        """
        content = self._content_patches(patches)
        if content == 0:
            return np.full(patches + 1, min(rest // max(tiles, 1), patches), np.int32)
        share = np.arange(patches + 1, dtype=np.float32) / np.float32(content)
        return np.minimum((share * np.float32(rest)).astype(np.int32), patches)

    def _content_patches(self, patches: int) -> int:
        return int(patches * (1 - self.alpha))

    def keep(self, inputs: Mapping[str, Float[Array, "I P N *width"]], plan: Plan) -> Bool[Array, "I P N"]:
        counts = self._paper_counts if self.variant == "paper" else self._code_counts
        return keep_top(inputs["score"], plan.candidates, counts(inputs["content"], plan))

    def _paper_counts(self, content: Float[Array, "I P N"], plan: Plan) -> Int[Array, "I P"]:
        has_overview, room = plan.extra["has_overview"], plan.candidates.sum(-1, dtype=jnp.int32)
        room = room.at[:, 0].set(jnp.where(has_overview, 0, room[:, 0]))
        of_region = sum_regions(content[:, 0], plan.extra["region"], room.shape[1])
        shares = jnp.where(has_overview[:, None], of_region, jnp.where(plan.candidates, content, 0).sum(-1))
        tiles = largest_remainder(shares, plan.total - plan.extra["overview"], room)
        rest = plan.total - tiles.sum(-1)  # what the tiles have no room for goes to the overview
        return tiles.at[:, 0].set(jnp.where(has_overview, rest, tiles[:, 0]))

    def _code_counts(self, content: Float[Array, "I P N"], plan: Plan) -> Int[Array, "I P"]:
        content = content[:, 0]
        best = jnp.full(content.shape[0], self._content_patches(content.shape[1]), jnp.int32)
        mask = keep_top(content, jnp.ones_like(content, bool), best)
        found = sum_regions(mask.astype(jnp.int32), plan.extra["region"], plan.candidates.shape[1])
        tiles = jnp.take_along_axis(plan.extra["quota"], found, axis=1)
        return tiles.at[:, 0].set(plan.extra["overview"])


def sum_regions(values: Num[Array, "I N"], region: Int[Array, "I N"], tiles: int) -> Num[Array, "I P"]:
    """Sum of the values of each tile's region, for `P = tiles` tiles; a patch of region 0..P-1 belongs to that tile."""
    member = region[:, None, :] == jnp.arange(tiles, dtype=region.dtype)[None, :, None]
    return jnp.where(member, values[:, None, :], 0).sum(-1)
