"""Cross entropy of the answer tokens, over a vocabulary of which no full table of scores is ever held.

The scores of a chunk of positions are made, used and forgotten; the backward pass makes them again. With 152 k entries
and 8 x 4096 positions the table would take 20 GB in float32, a chunk of 1024 takes 0.6.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from train.data.labels import IGNORED

Scores = Callable[[Float[Array, "*batch D"]], Float[Array, "*batch C"]]


class Sums(NamedTuple):
    """Totals over the targets, which can be added up over batches; divide by `targets` at the end."""

    loss: Float[Array, ""]
    right: Int[Array, ""]
    targets: Int[Array, ""]


class SoftTargets(NamedTuple):
    """Tokens that stand on a scale, such as times: near misses cost less.

    Attributes:
      tokens: their ids, in the order of the scale.
      std: width of the Gaussian around the target, in steps of the scale.
    """

    tokens: Sequence[int]
    std: float = 1.0

    def weights(self) -> Float[np.ndarray, "S S"]:
        """Row `i` is the distribution that is learned where token `i` is the target."""
        steps = np.arange(len(self.tokens))
        weights = np.exp(-((steps[:, None] - steps[None, :]) ** 2) / (2 * self.std**2))
        return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def cross_entropy(
    scores: Scores,
    hidden: Float[Array, "*batch D"],
    targets: Int[Array, "*batch"],
    *,
    soft: SoftTargets | None = None,
    chunk: int = 1024,
) -> Sums:
    """Cross entropy summed over all targets, in float32.

    Args:
      scores: the language-model head, see `Decoder.logits`.
      hidden: what it reads.
      targets: the token that follows each position; `IGNORED` where nothing is learned.
      soft: VILA's `soft_cross_entropy` for time tokens (`llava/train/utils.py`, main branch).
      chunk: positions whose scores are held at a time, over all rows (and devices) together; one of a row at least.

    A chunk takes positions from everywhere in every row, so that no device of a mesh idles where rows and tokens are
    split among them, and none needs those of another.
    """
    length = targets.shape[-1]
    hidden, targets = hidden.reshape(-1, length, hidden.shape[-1]), targets.reshape(-1, length)
    columns = min(length, max(1, chunk // len(targets)))
    chunks = -(-length // columns)
    one = jax.checkpoint(functools.partial(_chunk_sums, scores, soft))
    if chunks == 1:
        return one(hidden, targets)
    missing = chunks * columns - length
    hidden = jnp.pad(hidden, ((0, 0), (0, missing), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, missing)), constant_values=IGNORED)

    def add(sums: Sums, part: tuple[Array, ...]) -> tuple[Sums, None]:
        return Sums(*map(jnp.add, sums, one(*part))), None

    zero = Sums(jnp.float32(0), jnp.int32(0), jnp.int32(0))

    def chunked(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(len(x), columns, chunks, *x.shape[2:]), 2, 0)

    return jax.lax.scan(add, zero, (chunked(hidden), chunked(targets)))[0]


def _chunk_sums(
    scores: Scores, soft: SoftTargets | None, hidden: Float[Array, "B M D"], targets: Int[Array, "B M"]
) -> Sums:
    logits = scores(hidden).astype(jnp.float32)
    log_p = jax.nn.log_softmax(logits, axis=-1)
    known = targets >= 0
    losses = -jnp.take_along_axis(log_p, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    if soft is not None:
        tokens = jnp.asarray(soft.tokens, jnp.int32)
        on_scale = (targets[..., None] == tokens[None, None, :]).astype(jnp.float32)
        spread = -jnp.sum((on_scale @ soft.weights()) * log_p[..., tokens], axis=-1)
        losses = jnp.where(jnp.any(on_scale > 0, axis=-1), spread, losses)
    return Sums(
        jnp.sum(jnp.where(known, losses, 0.0)),
        jnp.sum(known & (jnp.argmax(logits, -1) == targets), dtype=jnp.int32),
        jnp.sum(known, dtype=jnp.int32),
    )
