"""Runs the decoder over prompts that grow shorter on the way; see `vila_jax.budgets.decoder_method` for the idea.

    layers 0 .. cut - 1     tokens  t v v v v v v t t t . .      cache  as long as without a budget
                            score, keep the best, pack
    layers cut ..           tokens  t v v v t t t .              cache  shorter

A fast attention kernel gives no scores, so that the few rows of attention that score the visual tokens are computed
beside it. Rows of a batch lose different numbers of tokens; each remembers how many, so that in every layer a generated
token finds the end of its row.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from vila_jax.budgets.select import keep_top
from vila_jax.infer.decoder_plan import Kept, Schedule
from vila_jax.nn.decoder import Cache, Decoder, LayerCache


class Tokens(NamedTuple):
    """The rows of a batch somewhere in the decoder, padded on the right.

    Attributes:
      x: hidden states.
      positions: rotary positions; padding repeats the last of its row.
      visual: which tokens are visual ones.
      source: the row of the table of visual tokens that each is; -1 for text, padding, and what was merged on the way.
      lengths: tokens of every row.
    """

    x: Float[Array, "B T D"]
    positions: Int[Array, "B T"]
    visual: Bool[Array, "B T"]
    source: Int[Array, "B T"]
    lengths: Int[Array, " B"]


class Raters(NamedTuple):
    """Who scores the visual tokens. Named by their distance from the end of their row, which dropping does not change.

    Attributes:
      back: 0 is the last token of the row.
      weight: of each opinion, 0 where there is no rater.
    """

    back: Int[Array, " R"]
    weight: Float[Array, "B R"]


def run_shortened(
    decoder: Decoder,
    tokens: Tokens,
    schedule: Schedule,
    kept: Kept,
    cache: Cache | None = None,
    *,
    last_only: bool = False,
) -> tuple[Tokens, Cache | None, Int[Array, "S B"]]:
    """Runs all blocks (not the final norm); for `last_only` see `vila_jax.infer.prefill.read`.

    Returns:
      The tokens that are left, the filled cache, and how many tokens each row has lost in front of the layers behind
      each cut.
    """
    rule, whole, first = schedule.rule, tokens.lengths, 0
    raters = choose_raters(tokens, schedule)
    written: list[LayerCache] = []
    lost = []

    def run(tokens: Tokens, layers: range, only: Int[Array, " B"] | None = None) -> Tokens:
        own = None if cache is None else cache[layers.start : layers.stop]
        x, own = decoder.run(tokens.x, tokens.positions, layers, own, only=only)
        written.extend(own or ())
        return tokens._replace(x=x)

    for stage, cut in enumerate(schedule.cuts):
        asked = cut if rule.scores_ahead else cut - 1
        tokens = run(tokens, range(first, asked))
        with jax.named_scope("score_visual_tokens"):
            scores = score(decoder, asked, tokens, raters)
        tokens = run(tokens, range(asked, cut))
        with jax.named_scope("drop_visual_tokens"):
            counts = Kept(*(count[stage] for count in kept))
            tokens = shorten(tokens, scores, counts, stage, schedule)
        lost.append(whole - tokens.lengths)
        first = cut
    tokens = run(tokens, range(first, len(decoder.layers)), tokens.lengths - 1 if last_only else None)
    return tokens, None if cache is None else tuple(written), jnp.stack(lost)


def choose_raters(tokens: Tokens, schedule: Schedule) -> Raters:
    """The last token of every row, or those of its question that the method chooses."""
    index = jnp.arange(tokens.visual.shape[1])[None, :]
    last_visual = jnp.max(jnp.where(tokens.visual, index, -1), axis=1)
    question = jnp.maximum(tokens.lengths - 1 - last_visual, 1)  # a prompt may end with a picture
    back = jnp.arange(schedule.raters)
    valid = back[None, :] < question[:, None]
    own = _rows(tokens.x, _places(tokens, back))
    return Raters(back, schedule.rule.raters(tokens.x, tokens.visual, own, valid).astype(jnp.float32))


def _places(tokens: Tokens, back: Int[Array, " R"]) -> Int[Array, "B R"]:
    return jnp.maximum(tokens.lengths[:, None] - 1 - back[None, :], 0)


def score(decoder: Decoder, layer: int, tokens: Tokens, raters: Raters) -> Float[Array, "B T"]:
    """Mean attention of the raters to all tokens, in a layer that reads `tokens`."""
    rows = decoder.attention_weights(layer, tokens.x, tokens.positions, _places(tokens, raters.back))
    weight = raters.weight / raters.weight.sum(axis=1, keepdims=True)
    return jnp.einsum("BR,BRT->BT", weight, rows, precision="highest")


def shorten(tokens: Tokens, scores: Float[Array, "B T"], counts: Kept, stage: int, schedule: Schedule) -> Tokens:
    """All text, the best of the visual tokens, and what is merged of the rest, packed into the length behind a cut."""
    index = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    best = keep_top(scores, tokens.visual, counts.tokens - counts.merged)
    left = best | (~tokens.visual & (index < tokens.lengths[:, None]))
    place = jnp.where(left, 2 * index, _NOWHERE)
    lengths = left.sum(axis=1, dtype=jnp.int32)
    if room := schedule.pools[stage]:
        pool = keep_top(scores, tokens.visual & ~best, counts.pool)
        size = pool.sum(axis=1, dtype=jnp.int32)
        clusters = jnp.minimum(counts.merged, size)
        slot = jnp.arange(room)[None, :]
        merged = schedule.rule.merge(_rows(tokens.x, first_marked(pool, room)), slot < size[:, None], clusters)
        # Right behind the last visual token that is left.
        behind = 2 * jnp.max(jnp.where(best, index, -1), axis=1, keepdims=True) + 1
        place = jnp.concatenate([place, jnp.where(slot < clusters[:, None], behind, _NOWHERE)], axis=1)
        lengths = lengths + clusters
        tokens = _appended(tokens, merged)
    order = jnp.argsort(place, axis=1, stable=True)[:, : schedule.lengths[stage]]
    x, positions, visual, source = (_rows(part, order) for part in tokens[:4])
    return _settled(Tokens(x, positions, visual, source, lengths), schedule.renumbered)


_NOWHERE = 2**30  # behind every token of a row


def first_marked(mask: Bool[Array, "B T"], room: int) -> Int[Array, "B R"]:
    """Indices of the first `room` marked entries of each row, in order; where there are fewer, unmarked ones follow."""
    return jnp.argsort(~mask, axis=1, stable=True)[:, :room]


def _rows(values: Shaped[Array, "B T *width"], index: Int[Array, "B U"]) -> Shaped[Array, "B U *width"]:
    return jnp.take_along_axis(values, index.reshape(*index.shape, *[1] * (values.ndim - 2)), axis=1)


def _appended(tokens: Tokens, merged: Float[Array, "B M D"]) -> Tokens:
    """With merged tokens at the end; they have no position before all are numbered anew."""
    shape = merged.shape[:2]
    return Tokens(
        x=jnp.concatenate([tokens.x, merged.astype(tokens.x.dtype)], axis=1),
        positions=jnp.concatenate([tokens.positions, jnp.zeros(shape, jnp.int32)], axis=1),
        visual=jnp.concatenate([tokens.visual, jnp.ones(shape, bool)], axis=1),
        source=jnp.concatenate([tokens.source, jnp.full(shape, -1, jnp.int32)], axis=1),
        lengths=tokens.lengths,
    )


def _settled(tokens: Tokens, renumbered: bool) -> Tokens:
    """Settles positions, padding's included, and calls no padding visual."""
    index = jax.lax.broadcasted_iota(jnp.int32, tokens.visual.shape, 1)
    capped = jnp.minimum(index, tokens.lengths[:, None] - 1)
    positions = capped if renumbered else _rows(tokens.positions, capped)
    real = index < tokens.lengths[:, None]
    source = jnp.where(real, tokens.source, -1)
    return tokens._replace(positions=positions, visual=tokens.visual & real, source=source)
