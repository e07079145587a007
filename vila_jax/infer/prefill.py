"""Prefill: from laid-out prompts and the table of visual tokens to the first token of every row."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from vila_jax.infer.decode import Progress, advance
from vila_jax.infer.decoder_plan import Kept, Schedule, SparseSchedule
from vila_jax.infer.sampler import Sampler
from vila_jax.infer.shorten import Tokens, run_shortened
from vila_jax.infer.sparse import Watched, run_sparse
from vila_jax.infer.vision import VisualTokens
from vila_jax.nn.config import DecoderConfig
from vila_jax.nn.decoder import Cache, Decoder, empty_cache
from vila_jax.nn.vlm import VLM


class Prompts(NamedTuple):
    """A batch of laid-out prompts, padded on the right (NumPy or JAX arrays).

    Attributes:
      token_ids: ids, anything at visual slots, `[B, T]`.
      source: -1 for text, otherwise the row of the table of visual tokens, `[B, T]`.
      lengths: real tokens of every row, `[B]`.
      base: with original positions, that of every text token, and at visual slots that at which the picture begins; see
        `vila_jax.infer.positions`, `[B, T]`.
    """

    token_ids: Int[Any, "B T"]
    source: Int[Any, "B T"]
    lengths: Int[Any, " B"]
    base: Int[Any, "B T"] | None = None


def close_gaps(prompts: Prompts, valid: Bool[Array, " V"]) -> Prompts:
    """Moves unused visual slots behind the end of each row, so that the text after a picture follows its last token."""
    token = jnp.arange(prompts.source.shape[1])[None, :]
    used = jnp.where(prompts.source >= 0, valid[jnp.maximum(prompts.source, 0)], True)
    used = used & (token < prompts.lengths[:, None])
    order = jnp.argsort(~used, axis=1, stable=True)
    return Prompts(
        token_ids=jnp.take_along_axis(prompts.token_ids, order, axis=1),
        source=jnp.take_along_axis(prompts.source, order, axis=1),
        lengths=jnp.sum(used, axis=1, dtype=jnp.int32),
        base=None if prompts.base is None else jnp.take_along_axis(prompts.base, order, axis=1),
    )


@dataclasses.dataclass(frozen=True)
class Room:
    """The static part of a cache: the decoder, the dtype, and the length of every layer's."""

    config: DecoderConfig
    dtype: str
    lengths: tuple[int, ...]


class Before(NamedTuple):
    """What was read before of some rows.

    Attributes:
      cache: keys and values.
      entries: of the cache in use, `[B]`.
      position: of the first token of the rest, `[B]`.
    """

    cache: Cache
    entries: Int[Any, " B"]
    position: Int[Any, " B"]


def lengthened(graphdef: nnx.GraphDef, state: nnx.State, cache: Cache, *, lengths: tuple[int, ...]) -> Cache:
    """A copy of a cache, with room for more entries."""
    del graphdef, state

    def copy(old: Shaped[Array, "*rows K S H"], length: int) -> Shaped[Array, "*rows K L H"]:
        longer = jnp.zeros((*old.shape[:-2], length, old.shape[-1]), old.dtype)
        return jax.lax.dynamic_update_slice(longer, old, (0,) * old.ndim)

    return tuple(
        jax.tree.map(functools.partial(copy, length=own), layer) for layer, own in zip(cache, lengths, strict=True)
    )


def rotary_positions(
    prompts: Prompts, visual: VisualTokens | None, first: Int[Array, " B"] | None = None
) -> Int[Array, "B T"]:
    """Tokens numbered through, as if those that a budget takes away had never been, or their original positions.

    Padding repeats the last position.

    Args:
      first: the position of each row's first token; 0 when absent.
    """
    index = jax.lax.broadcasted_iota(jnp.int32, prompts.token_ids.shape, 1)
    positions = jnp.minimum(index, prompts.lengths[:, None] - 1)
    if prompts.base is not None and visual is not None and visual.places is not None:
        place = jnp.where(prompts.source >= 0, visual.places[jnp.maximum(prompts.source, 0)], 0)
        positions = jnp.take_along_axis(prompts.base + place, positions, axis=1)
    return positions if first is None else positions + first[:, None]


def embed(model: VLM, prompts: Prompts, visual: VisualTokens | None, first: Int[Array, " B"] | None = None) -> Tokens:
    """Embeddings of text and visual tokens in one sequence; for `first` see `rotary_positions`."""
    if visual is not None and visual.valid is not None:
        prompts = close_gaps(prompts, visual.valid)
    if visual is None:
        embedded = model.decoder.embed(prompts.token_ids)
    else:
        embedded = model.splice(prompts.token_ids, prompts.source, visual.table)
    real = jax.lax.broadcasted_iota(jnp.int32, prompts.source.shape, 1) < prompts.lengths[:, None]
    source = jnp.where(real, jnp.asarray(prompts.source), -1)
    return Tokens(embedded, rotary_positions(prompts, visual, first), source >= 0, source, prompts.lengths)


class Reading(NamedTuple):
    """Prompts, read.

    Attributes:
      tokens: those that are left; their `x`, or that of the last of each row alone, `[B, 1, D]`, is ready for `logits`.
      cache: filled.
      lost, watched: with a budget inside the decoder; see `Progress`.
    """

    tokens: Tokens
    cache: Cache | None
    lost: Int[Array, "S B"] | None = None
    watched: Watched | None = None


def read(
    decoder: Decoder,
    tokens: Tokens,
    schedule: Schedule | SparseSchedule | None,
    kept: Kept | None,
    cache: Cache | None = None,
    offset: Int[Array, " B"] | None = None,
    *,
    last_only: bool = False,
) -> Reading:
    """Runs the decoder, by a schedule if there is one; else perhaps behind `offset` entries of the cache.

    Args:
      last_only: with a cache; the hidden state of each row's last token is all that is wanted.
    """
    if schedule is None or kept is None:
        only = tokens.lengths - 1 if last_only else None
        hidden, cache = decoder(tokens.x, tokens.positions, cache, offset, only=only)
        return Reading(tokens._replace(x=hidden), cache)
    lost, watched = None, None
    if isinstance(schedule, Schedule):
        tokens, cache, lost = run_shortened(decoder, tokens, schedule, kept, cache, last_only=last_only)
    else:
        tokens, cache, watched = run_sparse(decoder, tokens, schedule, kept, cache, last_only=last_only)
    return Reading(tokens._replace(x=decoder.norm(tokens.x)), cache, lost, watched)


def prefill(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    prompts: Prompts,
    visual: VisualTokens | None,
    sampler: Sampler,
    limit: Int[Array, " B"],
    end_tokens: Int[Array, " E"],
    kept: Kept | None = None,
    before: Before | None = None,
    *,
    room: Room,
    schedule: Schedule | SparseSchedule | None = None,
) -> Progress:
    """Reads the prompts and chooses the first token of every row.

    Args:
      visual: None for text alone.
      limit: tokens that each row may generate; rows of 0 are padding and are done at once.
      end_tokens: tokens that finish a row.
      room: in the cache for prompts and generated tokens together.
      kept, schedule: with a budget inside the decoder, what it leaves of each row, and where.
      before: what was read before of the rows that `prompts` are the rest of, its cache as long as `room`; not with
        a schedule.
    """
    model = nnx.merge(graphdef, state)
    batch = prompts.token_ids.shape[0]
    if before is None:
        entries, position = None, None
        cache = empty_cache(room.config, batch, room.lengths, jnp.dtype(room.dtype))
    else:
        cache, entries, position = before
    tokens = embed(model, prompts, visual, position)
    with jax.named_scope("decoder_prefill"):
        reading = read(model.decoder, tokens, schedule, kept, cache, entries, last_only=True)
    last, none = reading.tokens.x[:, 0], jnp.zeros(batch, jnp.int32)
    assert reading.cache is not None
    lengths = tokens.lengths if entries is None else tokens.lengths + entries
    progress = Progress(
        reading.cache,
        lengths,
        token=none,
        generated=none,
        limit=limit,
        done=limit <= 0,
        shift=tokens.positions[:, -1] + 1 - lengths,  # padding repeats the last position
        lost=reading.lost,
        watched=reading.watched,
    )
    return advance(progress, sampler(model.decoder.logits(last), none), end_tokens)


def prompt_embeddings(
    graphdef: nnx.GraphDef, state: nnx.State, prompts: Prompts, visual: VisualTokens | None
) -> tuple[Float[Array, "B T D"], Int[Array, " B"]]:
    """Embeddings of the spliced prompts, and the length of every row."""
    tokens = embed(nnx.merge(graphdef, state), prompts, visual)
    return tokens.x, tokens.lengths


def prompt_logits(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    prompts: Prompts,
    visual: VisualTokens | None,
    kept: Kept | None = None,
    *,
    schedule: Schedule | SparseSchedule | None = None,
) -> tuple[Float[Array, "B T C"], Int[Array, " B"]]:
    """Float32 logits of all tokens of the spliced prompts, and the length of every row.

    With a budget inside the decoder, of the tokens that its last layer reads.
    """
    model = nnx.merge(graphdef, state)
    left = read(model.decoder, embed(model, prompts, visual), schedule, kept).tokens
    return model.decoder.logits(left.x), left.lengths


def tokens_left(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    prompts: Prompts,
    visual: VisualTokens,
    kept: Kept,
    *,
    schedule: Schedule,
) -> Int[Array, "B T"]:
    """The rows of the table of visual tokens that the last layer still reads; -1 for all else."""
    model = nnx.merge(graphdef, state)
    return read(model.decoder, embed(model, prompts, visual), schedule, kept).tokens.source
