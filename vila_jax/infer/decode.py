"""The decode loop: chunks of steps inside one jit, over a donated cache of static length."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vila_jax.infer.decoder_plan import Stages
from vila_jax.infer.sampler import Sampler
from vila_jax.infer.sparse import Watched, focus_on
from vila_jax.nn.decoder import Cache, Decoder, LayerCache

_ALL_ALIKE = Stages()


class Progress(NamedTuple):
    """Where every row of a batch stands.

    Attributes:
      cache: keys and values of all tokens but the last.
      lengths: entries of the first layer's cache in use, `[B]`.
      token: the last token generated, not yet in the cache, `[B]`.
      generated: number of tokens generated, that one included, `[B]`.
      limit: number of tokens asked for, `[B]`.
      done: rows that met an end token or their limit, or were stopped; they are carried along unchanged, `[B]`.
      shift: how far the position of the next token lies behind `lengths`: 0, but for original positions, `[B]`.
      lost: with tokens dropped inside the decoder, how many entries fewer the layers behind each cut have, `[S, B]`.
      watched: with sparse attention, what it chooses among.
    """

    cache: Cache
    lengths: Int[Array, " B"]
    token: Int[Array, " B"]
    generated: Int[Array, " B"]
    limit: Int[Array, " B"]
    done: Bool[Array, " B"]
    shift: Int[Array, " B"]
    lost: Int[Array, "S B"] | None = None
    watched: Watched | None = None


def decode_chunk(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    progress: Progress,
    stopped: Bool[Array, " B"],
    sampler: Sampler,
    end_tokens: Int[Array, " E"],
    *,
    steps: int,
    stages: Stages = _ALL_ALIKE,
) -> tuple[Progress, Int[Array, "B steps"]]:
    """Up to `steps` more tokens for every row, fewer when all rows are done.

    Args:
      stopped: rows that the host has ended.
      end_tokens: tokens that finish a row; they are returned, too.
      stages: with a budget inside the decoder, where layers differ.

    Returns:
      The new progress, and the tokens with -1 where a row had finished before.
    """
    decoder = nnx.merge(graphdef, state).decoder
    progress = progress._replace(done=progress.done | stopped)

    def unfinished(carry: tuple[Array, Progress, Array]) -> Array:
        step, progress, _ = carry
        return (step < steps) & ~jnp.all(progress.done)

    def one(carry: tuple[Array, Progress, Array]) -> tuple[Array, Progress, Array]:
        step, progress, tokens = carry
        hidden, cache = read_token(decoder, progress, stages)
        progress = progress._replace(cache=cache, lengths=progress.lengths + ~progress.done)
        chosen = sampler(decoder.logits(hidden[:, 0]), progress.generated)
        emitted = jnp.where(progress.done, -1, chosen)
        return step + 1, advance(progress, chosen, end_tokens), tokens.at[:, step].set(emitted)

    tokens = jnp.full((progress.token.shape[0], steps), -1, jnp.int32)
    _, progress, tokens = jax.lax.while_loop(unfinished, one, (jnp.int32(0), progress, tokens))
    return progress, tokens


def read_token(decoder: Decoder, progress: Progress, stages: Stages) -> tuple[Float[Array, "B 1 D"], Cache]:
    """The last token of every row through the decoder, at the end of what each layer has cached of its row."""
    x, cache = decoder.embed(progress.token[:, None]), progress.cache
    written: list[LayerCache] = []
    for stage, layers in enumerate(map(range, (0, *stages.cuts), (*stages.cuts, len(decoder.layers)))):
        entries, focus = progress.lengths, None
        if stage > 0 and progress.lost is not None:
            entries = entries - progress.lost[stage - 1]
        if stage > 0 and progress.watched is not None:
            focus = focus_on(progress.watched, entries, stages.room)
        positions = entries if stage > 0 and stages.renumbered else progress.lengths + progress.shift
        part = cache[layers.start : layers.stop]
        x, own = decoder.run(x, positions[:, None], layers, part, entries, focus=focus)
        written.extend(own or ())
    return decoder.norm(x), tuple(written)


def advance(progress: Progress, chosen: Int[Array, " B"], end_tokens: Int[Array, " E"]) -> Progress:
    """Takes the chosen tokens into the rows that are not done."""
    generated = progress.generated + ~progress.done
    ended = jnp.any(chosen[:, None] == end_tokens[None, :], axis=1) | (generated >= progress.limit)
    return progress._replace(
        token=jnp.where(progress.done, progress.token, chosen),
        generated=generated,
        done=progress.done | ended,
    )
