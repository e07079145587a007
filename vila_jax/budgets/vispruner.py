"""VisPruner (Zhang et al., ICCV 2025, arXiv 2412.01818v2): important patches, and of the rest those that differ.

Of the `T` tokens of a tile

    important   int(T * ratio): the patches that the class token attends to most;
    diverse     the others: from what remains, in the order of attention, duplicates are dropped 8 at a time. Every
                other patch is compared with those between; the 8 with the most similar partner (cosine of the tower's
                features) go. What is left of the compared ones, most similar first, and then their partners make the
                list of the next round.

Published code: Theia-4869/VisPruner, aefa01a, whose choice the defaults reproduce. Where it stops with an error, the
rule is continued here: when the list has an odd length, its last patch is compared as well and has no partner of its
own; when fewer than 8 are compared, no more than these are dropped in one round. Tiles share the tokens in proportion
to what they show of the picture; without padding that is the same number each, as in the code.

A tower without class token (SigLIP) has the attention that a patch *receives*, averaged over all queries, in its place.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vila_jax.budgets.greedy import cosines
from vila_jax.budgets.method import TileSelector, check_part, class_attention
from vila_jax.budgets.select import best_first
from vila_jax.nn.config import VisionConfig

_A_ROUND = 8
"""Duplicates dropped before the list is paired anew."""


@dataclasses.dataclass(frozen=True)
class VisPruner(TileSelector):
    """VisPruner.

    Options:
      positions: see `Selector`.
      ratio: part of the tokens that are chosen by attention, in [0, 1].
      layer: block (0-based) whose attention scores the patches; -1 is the last one built, which feeds the projector.
    """

    name: ClassVar[str] = "vispruner"

    ratio: float = 0.5
    layer: int = -1

    def __post_init__(self):
        check_part(self.ratio, "ratio", "the part of the tokens that are chosen by attention", self.name)

    def intermediates(self, vision: VisionConfig, depth: int) -> dict[str, str]:
        return {"score": class_attention(vision, depth, self.layer, "layer"), "features": "features"}

    def keep_in_tiles(
        self,
        inputs: Mapping[str, Float[Array, "I P N *width"]],
        candidates: Bool[Array, "I P N"],
        counts: Int[Array, "I P"],
    ) -> Bool[Array, "I P N"]:
        # A table, because the last bit of a device's product could change what truncation makes of it.
        important = jnp.asarray((np.arange(candidates.shape[-1] + 1) * self.ratio).astype(np.int32))[counts]
        ranking, similarity = best_first(inputs["score"], candidates), cosines(inputs["features"])
        by_picture = jax.vmap(jax.vmap(_keep_in_tile))
        return by_picture(ranking, similarity, important, candidates.sum(-1, dtype=jnp.int32), counts)


def _keep_in_tile(
    ranking: Int[Array, " N"],
    similarity: Float[Array, "N N"],
    important: Int[Array, ""],
    available: Int[Array, ""],
    count: Int[Array, ""],
) -> Bool[Array, " N"]:
    """The first `important` of a ranking, of which `available` count, and the most diverse of the others."""
    place = jnp.arange(len(ranking))
    listed, length = drop_duplicates(
        jnp.roll(ranking, -important), available - important, count - important, similarity
    )
    keep = jnp.zeros(len(ranking), bool)
    return keep.at[ranking].set(place < important).at[listed].max(place < length)


def drop_duplicates(
    listed: Int[Array, " N"], length: Int[Array, ""], target: Int[Array, ""], similarity: Float[Array, "N N"]
) -> tuple[Int[Array, " N"], Int[Array, ""]]:
    """Shortens a list of patches to `target` by the rule above.

    Args:
      listed: patches, of which the first `length` are the list and the others arbitrary, each once.
      length: of the list.
      target: at most so many are left.
      similarity: of every pair of patches.

    Returns:
      The list and its length, as they came.
    """
    place = jnp.arange(len(listed))

    def one_round(state: tuple[Array, Array]) -> tuple[Array, Array]:
        listed, length = state
        compared, partners = (place < length) & (place % 2 == 0), (place < length) & (place % 2 == 1)
        is_partner = jnp.zeros(len(listed), bool).at[listed].set(partners)
        likeness = jnp.where(is_partner[None, :], similarity, -jnp.inf).max(-1)[listed]
        kind = jnp.where(compared, 0, jnp.where(partners, 1, 2))
        most_alike_first = jnp.where(compared, -likeness, 0.0)
        *_, listed = jax.lax.sort((kind, most_alike_first, listed), num_keys=2, is_stable=True)
        dropped = jnp.minimum(jnp.minimum(_A_ROUND, length - target), compared.sum(dtype=length.dtype))
        return jnp.roll(listed, -dropped), length - dropped

    return jax.lax.while_loop(lambda state: state[1] > target, one_round, (listed, length))
