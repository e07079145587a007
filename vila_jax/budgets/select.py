"""From scores and counts to a static number of token slots."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Selection(NamedTuple):
    """The tokens of each image.

    Attributes:
      indices: flat index of the patch that a slot shows, or of the one that stands for those merged in it; -1 in unused
        slots, and where no patch stands for a token (a class token).
      valid: slots that are used.
      weights: None where tokens are patches. Otherwise a token is the sum of the features of all patches, in flat
        order, times these; `Z = M`, or `M + P` where the method reads `class_token`: then those of the tiles follow.
        Rows of unused slots are arbitrary.
    """

    indices: Int[Array, "I K"]
    valid: Bool[Array, "I K"]
    weights: Float[Array, "I K Z"] | None = None


def keep_top(
    scores: Float[Array, "*rows N"], candidates: Bool[Array, "*rows N"], counts: Int[Array, "*rows"]
) -> Bool[Array, "*rows N"]:
    """Marks the `counts` best candidates of each row.

    The lowest index wins a tie. NaN ranks with -inf below every number, but above what is no candidate, so that
    exactly `min(counts, candidates)` entries are kept whatever the scores are.
    """
    rank = jnp.argsort(best_first(scores, candidates), axis=-1)
    return (rank < counts[..., None]) & candidates


def best_first(scores: Float[Array, "*rows N"], candidates: Bool[Array, "*rows N"]) -> Int[Array, "*rows N"]:
    """Indices of the candidates of each row, best first, and then of what is no candidate; for ties see `keep_top`."""
    scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
    index = jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    *_, by_rank = jax.lax.sort((~candidates, -scores, index), num_keys=2, is_stable=True)
    return by_rank


def compact(keep: Bool[Array, "I P N"], order: Int[Array, "I M"], capacity: int) -> Selection:
    """Packs the kept patches into `capacity` slots, in token order.

    Args:
      keep: patches to keep.
      order: flat patch indices in token order, -1 where unused. A kept patch that is not in it is dropped.
      capacity: `K`; patches beyond it are dropped.
    """
    flat = keep.reshape(keep.shape[0], -1)
    kept = jnp.take_along_axis(flat, jnp.maximum(order, 0), axis=1) & (order >= 0)
    running = jnp.cumsum(kept, axis=1, dtype=jnp.int32)
    # Slot k holds the first place at which the running count reaches k + 1: a gather, where a scatter would serialise.
    wanted = jnp.arange(1, capacity + 1, dtype=jnp.int32)
    place = jax.vmap(lambda row: jnp.searchsorted(row, wanted, method="scan_unrolled"))(running)
    valid = place < order.shape[1]
    indices = jnp.take_along_axis(order, jnp.where(valid, place, 0), axis=1)
    return Selection(jnp.where(valid, indices, -1), valid)
