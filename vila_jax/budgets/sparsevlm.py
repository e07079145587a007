"""SparseVLM: the question's own visual words choose in three layers; part of what is dropped is merged.

"SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference" (arXiv 2410.04417, ICML 2025), as
published in Gumpest/SparseVLMs, 26a5f48 (its first version, `attn_postprocess_topk`):

1. raters are chosen once, on what the decoder reads: every visual token spreads its opinion over the tokens of the
   question by a softmax of their inner products, and the tokens of the question that get more than the mean, rate;
2. behind the layers 2, 6 and 15 (of 32, here fractions of the depth) visual tokens are scored by the attention that the
   raters pay to them in that layer, averaged over heads and raters, and the best stay;
3. of those dropped the best 30 % (`int(0.3 n) + 1`) are clustered by density peaks (DPC-KNN) into a tenth as many
   (`int(m / 10) + 1`) tokens, the means of the clusters, which follow behind the visual tokens that stay;
4. positions are counted anew.

The reference keeps fixed numbers of tokens (the paper's rule by matrix rank is not in its code), and clusters come on
top. Here KEEP and the ratios count both together, so that methods are compared at equal numbers: of them as many are
kept as leaves room for the clusters. A cut with too little room for a kept token beside the clusters merges nothing.
Of 576 tokens `sparsevlm:113,ratio1=0.537,ratio2=0.355` keeps 300, 200 and 110 as its setting for 192 tokens does,
`sparsevlm:39,ratio1=0.542,ratio2=0.204` that for 128, `sparsevlm:18,ratio1=0.143,ratio2=0.056` that for 64. It adds
noise of 1e-6 to densities against ties; here the lowest index wins them. It knows one picture and one prompt at a
time; here the visual tokens of all pictures of a row compete, the question is the text behind the last of them (the
last token alone, where a prompt ends with a picture), and merged tokens follow the last visual token that stays.
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vila_jax.budgets.decoder_method import ThreeStages


@dataclasses.dataclass(frozen=True)
class SparseVLM(ThreeStages):
    """SparseVLM; for the options of its schedule see `ThreeStages`.

    Options:
      positions: `renumbered` alone: a merged token has no position of its own.
      merge_tokens: whether dropped tokens are merged.
    """

    name: ClassVar[str] = "sparsevlm"
    asks_question: ClassVar[bool] = True

    positions: Literal["renumbered"] = "renumbered"
    layer1: float = 3 / 32
    layer2: float = 7 / 32
    layer3: float = 0.5
    merge_tokens: bool = True

    def raters(
        self,
        x: Float[Array, "B T D"],
        visual: Bool[Array, "B T"],
        question: Float[Array, "B R D"],
        valid: Bool[Array, "B R"],
    ) -> Bool[Array, "B R"]:
        x, question = x.astype(jnp.float32), question.astype(jnp.float32)
        products = jnp.einsum("BTD,BRD->BTR", x, question, precision="highest")
        opinion = jax.nn.softmax(jnp.where(valid[:, None, :], products, -jnp.inf), axis=-1)
        relevance = jnp.where(visual[:, :, None], opinion, 0).sum(axis=1)
        mean = jnp.where(valid, relevance, 0).sum(axis=1) / valid.sum(axis=1)
        above = valid & (relevance > mean[:, None])
        return jnp.where(above.any(axis=1, keepdims=True), above, valid)  # all alike: all rate

    def merging(self, before: int, after: int) -> tuple[int, int]:
        if not self.merge_tokens or after >= before:
            return 0, 0
        for kept in range(after - 1, 0, -1):
            pool = int((before - kept) * 0.3) + 1
            clusters = pool // 10 + 1
            if kept + clusters == after:
                return pool, clusters
            if kept + clusters < after:
                break
        return 0, 0

    def merge(
        self, x: Float[Array, "B M D"], valid: Bool[Array, "B M"], clusters: Int[Array, " B"]
    ) -> Float[Array, "B M D"]:
        return cluster_means(x, valid, clusters)


def cluster_means(
    x: Float[Array, "B M D"], valid: Bool[Array, "B M"], clusters: Int[Array, " B"]
) -> Float[Array, "B M D"]:
    """Clusters by density peaks (DPC-KNN, Du et al. 2016), the most prominent cluster first.

    Args:
      x: vectors.
      valid: those that count.
      clusters: how many clusters each row has.

    Returns:
      The means of the clusters in the first `clusters` places of each row; the others are arbitrary.
    """
    rows = x.astype(jnp.float32)
    distance = _distances(rows, valid)
    place = jnp.arange(x.shape[1])
    # How close the `clusters` nearest are, oneself among them.
    nearest = jnp.sort(distance, axis=-1)
    near = place[None, None, :] < clusters[:, None, None]
    spread = jnp.where(near & jnp.isfinite(nearest), nearest, 0) ** 2
    density = jnp.exp(-spread.sum(axis=-1) / jnp.maximum(clusters, 1)[:, None])
    # How far the nearest denser one is; from the densest, the largest distance of all.
    farthest = jnp.max(jnp.where(jnp.isfinite(distance), distance, 0), axis=(1, 2))[:, None, None]
    denser = density[:, None, :] > density[:, :, None]
    apart = jnp.where(denser & valid[:, None, :], distance, farthest).min(axis=-1)
    score = jnp.where(valid, apart * density, -jnp.inf)
    centre = jnp.argsort(-score, axis=-1, stable=True)
    used = place[None, :] < clusters[:, None]
    to_centre = jnp.take_along_axis(distance, centre[:, :, None], axis=1)
    own = jnp.argmin(jnp.where(used[:, :, None], to_centre, jnp.inf), axis=1)
    # A centre belongs to itself, though another may lie at the same place.
    rank = jnp.argsort(centre, axis=-1)
    own = jnp.where(rank < clusters[:, None], rank, own)
    member = (own[:, None, :] == place[None, :, None]) & valid[:, None, :]
    count = member.sum(axis=-1)
    total = jnp.einsum(
        "BCM,BMD->BCD", member.astype(jnp.float32), jnp.where(valid[:, :, None], rows, 0), precision="highest"
    )
    return (total / jnp.maximum(count, 1)[:, :, None]).astype(x.dtype)


def _distances(x: Float[Array, "B M D"], valid: Bool[Array, "B M"]) -> Float[Array, "B M M"]:
    """Euclidean distances over the root of the width; infinite from and to what does not count."""
    # About their mean: what all have in common would only cost digits.
    centre = (
        jnp.where(valid[:, :, None], x, 0).sum(axis=1, keepdims=True) / jnp.maximum(valid.sum(axis=1), 1)[:, None, None]
    )
    x = x - centre
    norms = jnp.sum(x * x, axis=-1)
    products = jnp.einsum("BMD,BND->BMN", x, x, precision="highest")
    squares = jnp.maximum(norms[:, :, None] + norms[:, None, :] - 2 * products, 0)
    squares = jnp.where(jnp.eye(x.shape[1], dtype=bool)[None], 0, squares)
    both = valid[:, :, None] & valid[:, None, :]
    return jnp.where(both, jnp.sqrt(squares / x.shape[-1]), jnp.inf)
