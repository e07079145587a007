"""Shared by methods that look at how alike tokens are: cosines, and picking tokens one at a time."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

State = TypeVar("State")


def directions(features: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
    """Vectors of length 1 in float32, or 0 where a feature has no direction (zero, or not finite).

    No gradient flows: what is chosen by them is discrete.
    """
    features = jax.lax.stop_gradient(features).astype(jnp.float32)
    norms = jnp.linalg.norm(features, axis=-1, keepdims=True)
    units = features / jnp.where(norms > 0, norms, 1.0)
    return jnp.where(jnp.isfinite(units).all(-1, keepdims=True), units, 0.0)


def cosines(features: Float[Array, "*rows N D"]) -> Float[Array, "*rows N N"]:
    """Cosine of every pair of tokens of a row, at the highest precision: tokens are ranked by it.

    A token without direction is orthogonal to all, and to itself.
    """
    units = directions(features)
    return jnp.einsum("...ND,...MD->...NM", units, units, precision=jax.lax.Precision.HIGHEST)


def pick_in_turn(
    state: State,
    gain: Callable[[State], Float[Array, " N"]],
    update: Callable[[State, Int[Array, ""]], State],
    candidates: Bool[Array, " N"],
    count: Int[Array, ""],
    rounds: Int[Array, ""],
) -> Bool[Array, " N"]:
    """Takes, `count` times, the candidate of the largest gain among those left.

    The lowest index wins a tie; NaN ranks last. So exactly `min(count, candidates)` tokens are marked for any gains.

    Args:
      state: from which `gain` says what every token is worth now.
      update: the state after a token has been taken.
      candidates: tokens that may be taken.
      count: how many.
      rounds: at least `count`. One number for all rows that are mapped over, so that the loop ends for all at once.
    """

    def take_one(turn: Int[Array, ""], carry: tuple[State, Bool[Array, " N"]]) -> tuple[State, Bool[Array, " N"]]:
        state, keep = carry
        left = candidates & ~keep
        best = _first_best(gain(state), left)
        return update(state, best), keep.at[best].set(keep[best] | (left[best] & (turn < count)))

    return jax.lax.fori_loop(0, rounds, take_one, (state, jnp.zeros_like(candidates)))[1]


def _first_best(scores: Float[Array, " N"], allowed: Bool[Array, " N"]) -> Int[Array, ""]:
    """Index of the best allowed score, the first of equals; any index where nothing is allowed."""
    lowest = jnp.finfo(jnp.float32).min
    scores = jnp.maximum(jnp.where(jnp.isnan(scores), lowest, scores), lowest)  # above what is not allowed
    return jnp.argmax(jnp.where(allowed, scores, -jnp.inf))


def farthest_first(
    similarity: Float[Array, "R N N"], candidates: Bool[Array, "R N"], counts: Int[Array, " R"]
) -> Bool[Array, "R N"]:
    """Greedy max-min diversity, row by row: next comes the token whose most similar chosen token is least similar.

    The first is the one whose most similar other candidate is least similar.
    """
    rounds = counts.max()

    def one_row(similarity: Float[Array, "N N"], candidates: Bool[Array, " N"], count: Int[Array, ""]) -> Array:
        others = candidates[None, :] & ~jnp.eye(len(candidates), dtype=bool)
        alone = -jnp.where(others, similarity, -jnp.inf).max(-1)

        def add(state: tuple[Array, Array], chosen: Int[Array, ""]) -> tuple[Array, Array]:
            closest = jnp.maximum(state[1], similarity[chosen])
            return -closest, closest

        start = (alone, jnp.full_like(alone, -jnp.inf))
        return pick_in_turn(start, lambda state: state[0], add, candidates, count, rounds)

    return jax.vmap(one_row)(similarity, candidates, counts)
