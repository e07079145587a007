"""Photos and captions aligned by a bilinear form; of a photo the patches that a learned scorer likes go on.

    photo    patches ─ blocks ─ scorer ─ top k ─ blocks ─ mean, weighted by the softmax of the scores ─ v
    caption  words ─ block ─ mean ─ u                                                          score = v W u

The choice of the top k has no gradient. The scorer learns through the weights of the mean: a token that helps gains
weight, and with it rank. A model that keeps all tokens has the same scorer and the same mean, and so differs by the
choice alone.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.typing import DTypeLike
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
from eval.studies.words import PAD
from vila_jax.nn.params import normal, weight, zeros

_SHARPNESS = 10.0  # of the scores before training: vectors have length one


@dataclasses.dataclass(frozen=True)
class Shape:
    """Pixels of a photo and of a patch, sizes of the network, and words of a caption."""

    side: int = 112
    patch: int = 16
    width: int = 48
    heads: int = 4
    before: int = 1  # blocks before the choice
    after: int = 2
    words: int = 20

    @property
    def tokens(self) -> int:
        return (self.side // self.patch) ** 2


@dataclasses.dataclass(frozen=True)
class Keep:
    """How many patches go on, and which: the best by the learned score, or random ones as a control."""

    count: int
    by: Literal["score", "random"] = "score"


class Aligner(nnx.Module):
    """Vectors of length one for photos and captions, and the form that scores pairs of them."""

    def __init__(self, shape: Shape, vocabulary: int, *, rngs: nnx.Rngs):
        width, heads = shape.width, shape.heads
        self.embed = PatchEmbedding(shape.side, shape.patch, width, rngs=rngs)
        self.before = nnx.List([EncoderBlock(width, heads, rngs=rngs) for _ in range(shape.before)])
        self.score_norm, self.scorer = norm(width, rngs), linear(width, 1, rngs)
        self.after = nnx.List([EncoderBlock(width, heads, rngs=rngs) for _ in range(shape.after)])
        self.photo_norm = norm(width, rngs)
        self.word = weight((vocabulary, width), (None, None), normal(1.0), rngs=rngs)
        self.place = weight((shape.words, width), (None, None), normal(0.1), rngs=rngs)
        self.block, self.caption_norm = EncoderBlock(width, heads, rngs=rngs), norm(width, rngs)
        self.form = weight((width, width), (None, None), _identity, rngs=rngs)
        self.log_sharpness = weight((1,), (None,), zeros, rngs=rngs)

    def photos(
        self, photos: UInt8[Array, "B h w 3"], keep: Keep | None, key: Array | None = None
    ) -> Float[Array, "B D"]:
        """Vectors of photos.

        Args:
          keep: which patches go on, or None for all.
          key: for a random choice.
        """
        x = self.embed(normalised(photos))
        for block in self.before:
            x = block(x)
        scores = self.scorer(self.score_norm(x))[:, :, 0]
        if keep is not None:
            chosen = best(_ranking(keep, scores, key), keep.count)
            x = jnp.take_along_axis(x, chosen[:, :, None], axis=1)
            scores = jnp.take_along_axis(scores, chosen, axis=1)
        for block in self.after:
            x = block(x)
        weights = jax.nn.softmax(scores, axis=1)
        return _unit(jnp.einsum("BK,BKD->BD", weights, self.photo_norm(x)))

    def captions(self, words: Int[Array, "B W"]) -> Float[Array, "B D"]:
        """Vectors of captions, rows of word numbers."""
        alive = words != PAD
        x = jnp.take(self.word[...], words, axis=0) + self.place[...][None]
        return _unit(mean_alive(self.caption_norm(self.block(x, alive)), alive))

    def scores(self, photos: Float[Array, "N D"], captions: Float[Array, "C D"]) -> Float[Array, "N C"]:
        """The bilinear score of every pair."""
        return _SHARPNESS * jnp.exp(self.log_sharpness[...])[None] * (photos @ self.form[...] @ captions.T)


def _ranking(keep: Keep, scores: Float[Array, "B T"], key: Array | None) -> Float[Array, "B T"]:
    if keep.by == "score":
        return scores
    if key is None:
        raise ValueError("a random choice needs a key")
    return jax.random.uniform(key, scores.shape)


def _identity(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return jnp.eye(shape[0], dtype=dtype)


def _unit(x: Float[Array, "B D"]) -> Float[Array, "B D"]:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-6)


def contrastive_loss(scores: Float[Array, "B B"]) -> Float[Array, ""]:
    """Each photo's caption is the right one among those of the batch, and the other way round."""
    right = jnp.arange(len(scores))
    loss = optax.softmax_cross_entropy_with_integer_labels
    return (loss(scores, right).mean() + loss(scores.T, right).mean()) / 2


def photo_flops(shape: Shape, keep: Keep | None) -> float:
    """One photo: matrix products, a multiply-add counted as two."""
    kept = shape.tokens if keep is None else keep.count
    blocks = shape.before * block_flops(shape.tokens, shape.width) + shape.after * block_flops(kept, shape.width)
    scorer, mean = 2 * shape.tokens * shape.width, 2 * kept * shape.width
    return embedding_flops(shape.tokens, shape.patch, shape.width) + blocks + scorer + mean


def pair_flops(shape: Shape, keep: Keep | None) -> float:
    """A photo, a caption and their score."""
    form = 2 * shape.width**2 + 2 * shape.width
    return photo_flops(shape, keep) + block_flops(shape.words, shape.width) + form
