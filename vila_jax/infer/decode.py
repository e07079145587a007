"""The decode loop: chunks of steps inside one jit, over a donated cache of static length."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Int

from vila_jax.infer.sampler import Sampler
from vila_jax.nn.decoder import Cache


class Progress(NamedTuple):
    """Where every row of a batch stands.

    Attributes:
      cache: keys and values of all tokens but the last.
      lengths: entries of the cache in use, `[B]`.
      token: the last token generated, not yet in the cache, `[B]`.
      generated: number of tokens generated, that one included, `[B]`.
      limit: number of tokens asked for, `[B]`.
      done: rows that met an end token or their limit, or were stopped; they are carried along unchanged, `[B]`.
    """

    cache: Cache
    lengths: Int[Array, " B"]
    token: Int[Array, " B"]
    generated: Int[Array, " B"]
    limit: Int[Array, " B"]
    done: Bool[Array, " B"]


def decode_chunk(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    progress: Progress,
    stopped: Bool[Array, " B"],
    sampler: Sampler,
    end_tokens: Int[Array, " E"],
    *,
    steps: int,
) -> tuple[Progress, Int[Array, "B steps"]]:
    """Up to `steps` more tokens for every row, fewer when all rows are done.

    Args:
      stopped: rows that the host has ended.
      end_tokens: tokens that finish a row; they are returned, too.

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
        hidden, cache = decoder(
            decoder.embed(progress.token[:, None]), progress.lengths[:, None], progress.cache, progress.lengths
        )
        progress = progress._replace(cache=cache, lengths=progress.lengths + ~progress.done)
        chosen = sampler(decoder.logits(hidden[:, 0]), progress.generated)
        emitted = jnp.where(progress.done, -1, chosen)
        return step + 1, advance(progress, chosen, end_tokens), tokens.at[:, step].set(emitted)

    tokens = jnp.full((progress.token.shape[0], steps), -1, jnp.int32)
    _, progress, tokens = jax.lax.while_loop(unfinished, one, (jnp.int32(0), progress, tokens))
    return progress, tokens


def advance(progress: Progress, chosen: Int[Array, " B"], end_tokens: Int[Array, " E"]) -> Progress:
    """Takes the chosen tokens into the rows that are not done."""
    generated = progress.generated + ~progress.done
    ended = jnp.any(chosen[:, None] == end_tokens[None, :], axis=1) | (generated >= progress.limit)
    return progress._replace(
        token=jnp.where(progress.done, progress.token, chosen),
        generated=generated,
        done=progress.done | ended,
    )
