"""Runs the decoder with all tokens, of which the deeper layers attend to few; see `vila_jax.budgets.sparse`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vila_jax.budgets.select import keep_top
from vila_jax.infer.decoder_plan import Kept, SparseSchedule
from vila_jax.infer.shorten import Tokens
from vila_jax.nn.cache import length
from vila_jax.nn.decoder import Cache, Decoder
from vila_jax.nn.focus import Focus


class Watched(NamedTuple):
    """What generated tokens choose among.

    Attributes:
      visual: entries of the cache that are visual tokens.
      keep: how many of them a layer attends to.
    """

    visual: Bool[Array, "B S"]
    keep: Int[Array, " B"]


def focus_on(watched: Watched, decider: Int[Array, " B"], room: int) -> Focus:
    """All text up to the deciding token, and the visual tokens that it attends to most."""

    def choose(attention: Float[Array, "B S"]) -> Bool[Array, "B S"]:
        index = jax.lax.broadcasted_iota(jnp.int32, attention.shape, 1)
        best = keep_top(attention, watched.visual, watched.keep)
        return best | (~watched.visual & (index <= decider[:, None]))

    return Focus(choose, decider, room)


def run_sparse(
    decoder: Decoder,
    tokens: Tokens,
    schedule: SparseSchedule,
    kept: Kept,
    cache: Cache | None = None,
    *,
    last_only: bool = False,
) -> tuple[Tokens, Cache | None, Watched]:
    """Runs all blocks (not the final norm); for `last_only` see `vila_jax.infer.prefill.read`.

    Returns:
      The tokens, the filled cache, and what generated tokens choose among.
    """
    layer, watched = schedule.layer, Watched(tokens.visual, kept.tokens[0])
    focus = focus_on(watched, tokens.lengths - 1, schedule.room)
    before, behind = (None, None) if cache is None else (cache[:layer], cache[layer:])
    x, before = decoder.run(tokens.x, tokens.positions, range(layer), before)
    layers, only = range(layer, len(decoder.layers)), tokens.lengths - 1 if last_only else None
    x, behind = decoder.run(x, tokens.positions, layers, behind, focus=focus, only=only)
    tokens = tokens._replace(x=x)
    if before is None or behind is None:
        return tokens, None, watched
    room = length(behind[0][0]) - tokens.visual.shape[1]
    visual = jnp.pad(tokens.visual, ((0, 0), (0, room)))
    return tokens, (*before, *behind), watched._replace(visual=visual)
