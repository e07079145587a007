"""Pruning by norm inside the tower: from block to block, tokens of a small L2 norm go.

The norm is that of the hidden state between attention and MLP. There is no paper to follow; two forms of one idea:

    form=static      the strongest tokens stay, as many as the schedule says. The sequence is really shorter from there
                     on, in MLP and attention.
    form=threshold   tokens below a threshold are masked: no other attends to them. How many these are depends on the
                     picture, and no compiled program has shapes for that: all tokens are computed to the end, and the
                     tower takes as long as without. Only the decoder reads fewer.

KEEP is what is left of a tile at the end, in equal steps over the blocks `first_layer` to `last_layer`; with
form=threshold it is the most that is left, and the tokens that pass the threshold may be fewer. Norms differ between
towers by orders of magnitude, so that the threshold counts in means of the tile. With adaptive=true it is instead the
quantile of the tile's own norms at which the schedule's part of them passes.

Padding goes first. Of a tile that shows less than KEEP, only that much is left. At least one token always is.

Trained towers keep global information in a few patches of extreme norm (Darcet et al., arXiv 2309.16588), which this
ranking prefers whatever they show: compare with `random` before relying on it.
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vila_jax.budgets.method import Positions, TowerMethod, resolve_block
from vila_jax.budgets.select import keep_top
from vila_jax.budgets.tower import even_schedule
from vila_jax.errors import BudgetError
from vila_jax.nn.tower_tokens import Tokens


@dataclasses.dataclass(frozen=True)
class TowerNorm(TowerMethod):
    """Layer-wise pruning by L2 norm.

    Options:
      positions: see `vila_jax.budgets.method.Selector`.
      form: `static` or `threshold`, see above.
      threshold: with form=threshold, in means of the norms of the tile's remaining patches.
      adaptive: with form=threshold, take a quantile of the tile's norms in place of `threshold`.
      first_layer, last_layer: first and last block behind whose attention tokens go.
    """

    name: ClassVar[str] = "tower_norm"

    positions: Positions = "renumbered"
    form: Literal["static", "threshold"] = "static"
    threshold: float = 0.9
    adaptive: bool = False
    first_layer: int = 0
    last_layer: int = -1

    def __post_init__(self):
        if self.threshold <= 0:
            raise BudgetError(
                f"threshold is {self.threshold}, but must be above 0",
                where="budget method 'tower_norm'",
                fix="Give a number of means of the norms, such as 0.9.",
            )
        if self.form == "static" and (self.adaptive or self.threshold != TowerNorm.threshold):
            raise BudgetError(
                "form=static ranks tokens and has no threshold",
                where="budget method 'tower_norm'",
                fix="Add form=threshold, or leave threshold and adaptive out.",
            )

    @property
    def full_is_unbudgeted(self) -> bool:
        return self.form == "static" or self.adaptive  # a fixed threshold drops tokens whatever KEEP is

    @property
    def shortens(self) -> bool:
        return self.form == "static"

    def schedule(self, patches: int, kept: int, depth: int) -> tuple[int, ...]:
        first, last = self._blocks(depth)
        if first > last:
            raise BudgetError(
                f"first_layer is block {first}, behind last_layer, block {last}",
                where="budget method 'tower_norm'",
                fix="Let the first come before the last.",
            )
        return even_schedule(patches, kept, first, last, depth)

    def reduce(self, block: int, tokens: Tokens, keys: Float[Array, "R S heads H"], left: tuple[int, ...]) -> Tokens:
        del keys
        first, last = self._blocks(len(left))
        if not first <= block <= last:
            return tokens
        norms = jnp.linalg.norm(tokens.patches.astype(jnp.float32), axis=-1)
        if self.form == "static":
            return shorten(tokens, norms, left[block])
        visible = tokens.shows & (tokens.sizes > 0)
        if self.adaptive:
            passes = above_quantile(norms, visible, left[block], tokens.shown)
        else:
            passes = above_mean(norms, visible, self.threshold)
        most = left[-1] if block == last else norms.shape[1]
        return hide(tokens, keep_top(norms, passes, jnp.full(len(norms), most, jnp.int32)))

    def _blocks(self, depth: int) -> tuple[int, int]:
        first = resolve_block(self.first_layer, depth, "first_layer")
        return first, resolve_block(self.last_layer, depth, "last_layer")


def shorten(tokens: Tokens, norms: Float[Array, "R S"], count: int) -> Tokens:
    """The `count` tokens of the largest norm, in their order; of padding, which ranks below all others, the first."""
    if count == norms.shape[1]:
        return tokens
    strength = jnp.where(tokens.shows, jnp.nan_to_num(norms, nan=0.0), -1.0)
    index = jnp.sort(jax.lax.top_k(strength, count)[1], axis=1)  # of equals, top_k takes the lowest index
    tile, number = jnp.arange(len(norms))[:, None], jnp.arange(count, dtype=jnp.int32)[None]
    new = jnp.full(norms.shape, -1, jnp.int32).at[tile, index].set(number)
    return tokens.followed(jnp.take_along_axis(tokens.patches, index[:, :, None], axis=1), new, None)


def hide(tokens: Tokens, kept: Bool[Array, "R S"]) -> Tokens:
    """All tokens, of which no other attends to those that are not kept."""
    number = jnp.broadcast_to(jnp.arange(kept.shape[1], dtype=jnp.int32)[None], kept.shape)
    return tokens.followed(tokens.patches, jnp.where(kept, number, -1), kept.astype(jnp.float32))


def above_mean(norms: Float[Array, "R S"], visible: Bool[Array, "R S"], threshold: float) -> Bool[Array, "R S"]:
    """Visible tokens of at least `threshold` times their mean norm, or the strongest one."""
    count = jnp.maximum(visible.sum(axis=1, keepdims=True), 1)
    mean = jnp.where(visible, norms, 0.0).sum(axis=1, keepdims=True) / count
    return (visible & (norms >= threshold * mean)) | keep_top(norms, visible, jnp.ones(len(norms), jnp.int32))


def above_quantile(
    norms: Float[Array, "R S"], visible: Bool[Array, "R S"], left: int, shown: Bool[Array, "R N"]
) -> Bool[Array, "R S"]:
    """`left / N` of the patches that are shown, rounded up: the strongest, and what ties with the weakest of them."""
    count = -(-left * shown.sum(axis=1, dtype=jnp.int32) // shown.shape[1])
    top = keep_top(norms, visible, count)
    cutoff = jnp.where(top, norms, jnp.inf).min(axis=1, keepdims=True)
    return top | (visible & (norms >= cutoff))
