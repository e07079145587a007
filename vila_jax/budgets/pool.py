"""Average pooling: the baseline that looks at everything, and at nothing closely.

Every tile is divided into the cells of a square grid, as evenly as whole patches allow (patch `r` of `side` along an
edge goes to cell `r * grid // side`), and a token is the mean of the patches of a cell. Padding is in no mean, and
cells of nothing else are no tokens. So two by two pooling of a tile of 24 x 24 patches is `pool:144`.

All tiles of the full-resolution mosaic have the same grid, the largest that the tokens pay for; the overview has the
largest that pays with the rest. What even that leaves is not spent: see `Pool.total`. Where the tiles are too many for
the tokens, the overview has them all.

Tokens come in token order, that of their first patches. Nothing is scored, so that all of it is decided on the host.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vila_jax.budgets.method import Plan, TokenMethod
from vila_jax.budgets.select import Selection
from vila_jax.errors import BudgetError
from vila_jax.vision.geometry import TileGeometry


@dataclasses.dataclass(frozen=True)
class Pool(TokenMethod):
    """Average pooling. It has no options."""

    name: ClassVar[str] = "pool"
    merges: ClassVar[bool] = True

    def total(self, asked: int, geometry: TileGeometry) -> int:
        """Cells of the largest grids that `asked` tokens pay for.

        Raises:
          BudgetError: a picture without overview has more tiles than tokens.
        """
        return int(_cells(geometry, *_grids(geometry, asked)).max()) + 1

    def extra(self, geometry: TileGeometry, total: int, max_tiles: int, salt: int) -> dict[str, np.ndarray]:
        del salt
        cells = np.full(max_tiles * geometry.patches_per_tile, -1, np.int32)
        # The grids of `total` tokens are those of the tokens asked for: they fit, and larger ones did not even there.
        own = _cells(geometry, *_grids(geometry, total))
        cells[: own.size] = own
        return {"cells": cells}

    def choose(self, inputs: Mapping[str, Float[Array, "I P N *width"]], plan: Plan, slots: int) -> Selection:
        del inputs
        cells = jnp.where(plan.candidates.reshape(plan.order.shape), plan.extra["cells"], -1)
        member = cells[:, None, :] == jnp.arange(slots, dtype=jnp.int32)[None, :, None]
        sizes = member.sum(-1, dtype=jnp.int32)
        first = jnp.argmax(member, axis=-1).astype(jnp.int32)
        weights = member / jnp.maximum(sizes, 1)[..., None].astype(jnp.float32)
        return Selection(jnp.where(sizes > 0, first, -1), sizes > 0, weights)


@functools.lru_cache
def _grids(geometry: TileGeometry, tokens: int) -> tuple[int, int]:
    """Cells along an edge of the overview and of the other tiles, 0 for none: the largest that `tokens` pay for."""
    sizes = range(geometry.side, 0, -1)

    def largest(limit: int, *, overview: bool) -> int:
        fits = (g for g in sizes if _count(geometry, *((g, 0) if overview else (0, g))) <= limit)
        return next(fits, 0)

    has_overview = geometry.has_overview
    others = largest(tokens - has_overview, overview=False) if geometry.grid is not None else 0
    rest = tokens - _count(geometry, 0, others)
    if has_overview:
        return largest(rest, overview=True), others
    if not others:
        raise BudgetError(
            f"a picture of {geometry.num_tiles} tiles is pooled to at least a token each, and there are {tokens}",
            where="budget method 'pool'",
            fix="Ask for more tokens.",
        )
    return 0, others


def _count(geometry: TileGeometry, overview: int, others: int) -> int:
    return int(_cells(geometry, overview, others).max(initial=-1)) + 1


def _cells(geometry: TileGeometry, overview: int, others: int) -> Int[np.ndarray, " patches"]:
    """For every patch of the picture its cell, in token order; -1 for padding and in tiles without a grid."""
    side, order = geometry.side, geometry.order()
    tile, place = np.divmod(order, geometry.patches_per_tile)
    grid = np.where((tile == 0) & geometry.has_overview, overview, others)
    row, column = place // side * grid // side, place % side * grid // side
    names = ((tile * side + row) * side + column)[grid > 0]
    _, first, cell = np.unique(names, return_index=True, return_inverse=True)
    cells = np.full(geometry.num_tiles * geometry.patches_per_tile, -1, np.int32)
    cells[order[grid > 0]] = np.argsort(np.argsort(first))[cell]
    return cells
