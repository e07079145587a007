"""CDPruner (Zhang et al., NeurIPS 2025, arXiv 2506.10967): patches that answer the question and differ from each other.

A determinantal point process over the patches of a tile, whose kernel is

    relevance_i * cosine_ij * relevance_j

with the cosine of *projected* tokens and the relevance of a patch to the question. Its most probable set of `T` patches
is sought greedily: the next patch is the one with the most (weighted) length left outside the span of those chosen.

Published code: Theia-4869/CDPruner, 9541616, whose choice this reproduces. Relevance is there *minus* the mean cosine
between the patch's embedding and the question's, both from CLIP's own projections, scaled to (0, 1] over all tiles of
the picture (`relevance_to_text`). Where the features span fewer dimensions than tokens are asked for, the code divides
0 by 0 and repeats tokens; here the others follow by relevance. Tiles share the tokens in proportion to what they show
of the picture; without padding that is the same number each, as in the code.

LLaVA and VILA checkpoints hold CLIP's (or SigLIP's) vision tower without its text tower, so that no relevance can be
computed and models refuse the method; `select_tokens` takes it from callers who have one. `relevance=none` is the
paper's ablation in which all patches are equally relevant, and works everywhere.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vila_jax.budgets.greedy import cosines, directions, pick_in_turn
from vila_jax.budgets.method import TileSelector
from vila_jax.errors import BudgetError
from vila_jax.nn.config import VisionConfig, VLMConfig

_SPANNED = 1e-5
"""A patch is in the span of others once this part of its squared length is left: float32 noise is below it."""


@dataclasses.dataclass(frozen=True)
class CDPruner(TileSelector):
    """CDPruner.

    Options:
      positions: see `Selector`.
      relevance: `text`, how well a patch fits the question, or `none`.
    """

    name: ClassVar[str] = "cdpruner"
    nested: ClassVar[bool] = True

    relevance: Literal["text", "none"] = "text"

    def intermediates(self, vision: VisionConfig, depth: int) -> dict[str, str]:
        del vision, depth
        of_text = {"relevance": "text_relevance"} if self.relevance == "text" else {}
        return {"tokens": "projected", **of_text}

    def check(self, config: VLMConfig) -> None:
        del config
        if self.relevance == "text":
            raise BudgetError(
                "relevance to the question needs a text tower beside the vision tower, and this checkpoint has none",
                where="budget method 'cdpruner'",
                fix="Add relevance=none for its choice without a question, or use divprune.",
            )

    def keep_in_tiles(
        self,
        inputs: Mapping[str, Float[Array, "I P N *width"]],
        candidates: Bool[Array, "I P N"],
        counts: Int[Array, "I P"],
    ) -> Bool[Array, "I P N"]:
        relevance = inputs.get("relevance", jnp.ones(candidates.shape, jnp.float32))
        return most_probable(cosines(inputs["tokens"]), relevance, candidates, counts)


def relevance_to_text(
    patches: Float[Array, "I P N D"], texts: Float[Array, "I S D"], candidates: Bool[Array, "I P N"]
) -> Float[Array, "I P N"]:
    """Relevance of every patch to the question, in (0, 1] over the candidates of a picture, 0 elsewhere.

    Args:
      patches: embeddings of the patches in the space that CLIP shares with texts.
      texts: embeddings of the question's parts, `S` of them.
      candidates: patches that show the picture.
    """
    cosine = jnp.einsum("IPND,ISD->IPNS", directions(patches), directions(texts), precision=jax.lax.Precision.HIGHEST)
    unlike = -cosine.mean(-1)
    low = jnp.where(candidates, unlike, jnp.inf).min((1, 2), keepdims=True)
    high = jnp.where(candidates, unlike, -jnp.inf).max((1, 2), keepdims=True)
    scaled = (unlike - low + 1e-6) / jnp.where(high > low, high - low, 1e-6)
    return jnp.where(candidates, scaled, 0.0)


def most_probable(
    similarity: Float[Array, "*rows N N"],
    relevance: Float[Array, "*rows N"],
    candidates: Bool[Array, "*rows N"],
    counts: Int[Array, "*rows"],
) -> Bool[Array, "*rows N"]:
    """Greedy most probable set of a determinantal point process, row by row, of exactly `counts` candidates.

    Chen et al., NeurIPS 2018, arXiv 1709.05135, as a pivoted Cholesky factorisation: what is chosen is projected out of
    the kernel.
    """
    rounds = counts.max()
    weights = jax.lax.stop_gradient(relevance).astype(jnp.float32)
    # A direction with itself is 1 but for rounding, which must not decide between equally relevant candidates.
    itself = jnp.broadcast_to(jnp.eye(similarity.shape[-1], dtype=bool), similarity.shape)
    similarity = jnp.where(itself & (similarity > 0.5), 1.0, similarity)
    kernels = weights[..., :, None] * similarity * weights[..., None, :]

    def one_row(kernel: Float[Array, "N N"], candidates: Bool[Array, " N"], count: Int[Array, ""]) -> Array:
        whole = jnp.diagonal(kernel)

        def gain(rest: Float[Array, "N N"]) -> Float[Array, " N"]:
            left = jnp.diagonal(rest)
            is_new = (left > _SPANNED * whole) & candidates
            # What lies in the span of the chosen follows behind, by relevance; its rest is noise.
            return jnp.where(is_new.any(), jnp.where(is_new, left, -jnp.inf), whole)

        def project_out(rest: Float[Array, "N N"], chosen: Int[Array, ""]) -> Float[Array, "N N"]:
            length = rest[chosen, chosen]
            is_new = length > _SPANNED * whole[chosen]
            column = rest[chosen] / jnp.sqrt(jnp.where(is_new, length, 1.0))
            return jnp.where(is_new, rest - column[:, None] * column[None, :], rest)

        return pick_in_turn(kernel, gain, project_out, candidates, count, rounds)

    flat = [x.reshape(-1, *x.shape[counts.ndim :]) for x in (kernels, candidates, counts)]
    return jax.vmap(one_row)(*flat).reshape(candidates.shape)
