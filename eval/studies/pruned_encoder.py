"""A vision transformer that drops the tokens of small norm after every block but the last, in two forms.

Schedule: the `counts[i]` tokens of largest norm go on after block i. The counts are static, so later blocks are
shorter. Threshold: tokens whose norm is below `levels[i]` are masked from then on. How many depends on the picture, so
under XLA, where shapes are static, every block computes all tokens.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from eval.studies.encoder import (
    EncoderBlock,
    PatchEmbedding,
    best,
    block_flops,
    embedding_flops,
    linear,
    mean_alive,
    norm,
    normalised,
)
from eval.studies.training import Split, over_batches


@dataclasses.dataclass(frozen=True)
class Shape:
    """Pixels of a picture and of a patch, and the sizes of the network."""

    side: int = 96
    patch: int = 16
    width: int = 48
    heads: int = 4
    layers: int = 4

    @property
    def tokens(self) -> int:
        return (self.side // self.patch) ** 2


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Tokens that go on after each block but the last; chosen by norm, or at random as a control."""

    counts: tuple[int, ...]
    by: Literal["norm", "random"] = "norm"


class Threshold(NamedTuple):
    """The least norm of a token that goes on after each block but the last."""

    levels: Float[Array, "L-1"]


Rule = Schedule | Threshold | None


class PrunedEncoder(nnx.Module):
    """One logit for each picture: patches, blocks, the mean of the tokens that are left, a linear head."""

    def __init__(self, shape: Shape, *, rngs: nnx.Rngs):
        self.embed = PatchEmbedding(shape.side, shape.patch, shape.width, rngs=rngs)
        self.blocks = nnx.List([EncoderBlock(shape.width, shape.heads, rngs=rngs) for _ in range(shape.layers)])
        self.norm, self.head = norm(shape.width, rngs), linear(shape.width, 1, rngs)

    def __call__(
        self, pictures: UInt8[Array, "B h w 3"], rule: Rule, key: Array | None = None
    ) -> tuple[Float[Array, " B"], list[Float[Array, "B _"]]]:
        """Classifies pictures.

        Args:
          rule: how tokens are dropped, or None to keep them all.
          key: for a schedule that chooses at random.

        Returns:
          Logits, and after each block but the last the norms of its tokens, -inf for those that were masked before.
        """
        x, alive = self.embed(normalised(pictures)), None
        norms = []
        for i, block in enumerate(self.blocks[:-1]):
            x = block(x, alive)
            size = jnp.linalg.norm(x, axis=-1)
            size = size if alive is None else jnp.where(alive, size, -jnp.inf)
            norms.append(size)
            if isinstance(rule, Threshold):
                # The largest of a picture stays whatever the level is.
                alive = size >= jnp.minimum(rule.levels[i], jnp.max(size, axis=1, keepdims=True))
            elif rule is not None:
                chosen = best(_scores(rule, size, i, key), rule.counts[i])
                x = jnp.take_along_axis(x, chosen[:, :, None], axis=1)
        x = self.blocks[-1](x, alive)
        return self.head(mean_alive(self.norm(x), alive))[:, 0], norms


def _scores(rule: Schedule, norms: Float[Array, "B T"], layer: int, key: Array | None) -> Float[Array, "B T"]:
    if rule.by == "norm":
        return norms
    if key is None:
        raise ValueError("a schedule that chooses at random needs a key")
    return jax.random.uniform(jax.random.fold_in(key, layer), norms.shape)


def geometric(shape: Shape, ratio: float) -> tuple[int, ...]:
    """Counts that shrink by the same ratio after every block but the last."""
    return tuple(max(1, round(shape.tokens * ratio**i)) for i in range(1, shape.layers))


def calibrate(
    model: Split, pictures: UInt8[np.ndarray, "B h w 3"], counts: Sequence[int], *, batch: int = 250
) -> Threshold:
    """Levels at which the threshold form keeps `counts` tokens of these pictures in the mean, layer by layer."""
    graph, state = model
    forward = jax.jit(lambda state, rule, pictures: nnx.merge(graph, state)(pictures, rule)[1])
    levels = np.full(len(counts), -np.inf, np.float32)
    for i, count in enumerate(counts):
        rule = Threshold(jnp.asarray(levels))
        norms = over_batches(lambda own, rule=rule, i=i: forward(state, rule, own)[i], batch, pictures)
        levels[i] = np.sort(norms, axis=None)[-len(pictures) * count]
    return Threshold(jnp.asarray(levels))


def kept(rule: Threshold, norms: Sequence[Float[np.ndarray, "B T"]]) -> Int[np.ndarray, "B L-1"]:
    """Tokens that the threshold form leaves each picture for the blocks after the first."""
    counts = [(own >= level).sum(axis=1) for own, level in zip(norms, np.asarray(rule.levels), strict=True)]
    return np.maximum(1, np.stack(counts, axis=1))


def encoder_flops(shape: Shape, counts: Sequence[float]) -> float:
    """One picture whose blocks after the first see `counts` tokens. Matrix products, a multiply-add counted as two."""
    blocks = sum(block_flops(tokens, shape.width) for tokens in (shape.tokens, *counts))
    return embedding_flops(shape.tokens, shape.patch, shape.width) + blocks + 2 * shape.width
