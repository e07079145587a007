"""Sharing out a whole number of tokens."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vila_jax.budgets.select import keep_top


@jax.jit
def largest_remainder(
    shares: Float[Array, "*rows S"], total: Int[Array, "*rows"], caps: Int[Array, "*rows S"]
) -> Int[Array, "*rows S"]:
    """Shares out `total` in proportion to `shares`, no entry above its cap, and nothing lost.

    What an entry cannot take goes to the others in proportion to their shares; then everyone gets the floor of its
    quota, and those with the largest remainders one more (the lowest index wins a tie). Entries without a finite
    positive share count as zero; where all that can still take something are zero, they share evenly.

    Returns:
      int32 that sum to exactly `min(total, caps.sum())`.
    """
    weights = jnp.where(jnp.isfinite(shares) & (shares > 0), shares, 0.0)
    peak = weights.max(-1, keepdims=True)
    weights = weights / jnp.where(peak > 0, peak, 1.0)  # the sum of huge shares would overflow

    def quotas(full):
        left = (total - jnp.where(full, caps, 0).sum(-1)).astype(jnp.float32)
        rest = jnp.where(full, 0.0, weights)
        rest = jnp.where((rest.sum(-1, keepdims=True) == 0) & ~full, 1.0, rest)
        norm = rest.sum(-1, keepdims=True)
        return left[..., None] * rest / jnp.where(norm > 0, norm, 1.0)

    # Each round closes an entry at its cap or changes nothing, so as many rounds as entries are enough.
    full = jax.lax.fori_loop(0, caps.shape[-1], lambda _, full: full | (quotas(full) >= caps), caps <= 0)
    quota = quotas(full)
    floors = jnp.where(full, caps, jnp.floor(quota).astype(jnp.int32))
    # An open quota lies below its cap, a whole number: so there is room for the one more.
    return floors + keep_top(quota - jnp.floor(quota), ~full, total - floors.sum(-1))


def over_tiles(candidates: Bool[Array, "I P N"], total: Int[Array, " I"]) -> Int[Array, "I P"]:
    """Shares out the tokens of a picture evenly among its tiles, in proportion to the patches that may be kept."""
    room = candidates.sum(-1, dtype=jnp.int32)
    return largest_remainder(room.astype(jnp.float32), total, room)
