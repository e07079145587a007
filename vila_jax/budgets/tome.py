"""ToMe (Bolya et al., ICLR 2023, arXiv 2210.09461): similar tokens of the tower are merged, a few in every block.

Between attention and MLP of a block, following facebookresearch/ToMe, af95e4b (`tome/merge.py`, `tome/patch/timm.py`):

    metric     the keys of that attention, averaged over heads, as directions
    match      tokens are dealt alternately to two sets; each of the first finds its most similar one in the second
    merge      the `r` most similar of these pairs become one token each: the mean, weighted by the patches in them
    attention  of later blocks adds log(size) to the scores of a key, as if its patches were still apart

The class token counts when tokens are dealt, but is never merged. Merged tokens go on in the reference's order, which
decides who is dealt where in the next block: unmerged ones of the first set (by similarity; in their old order if there
is a class token), then the second set.

The reference takes the same `r` of every block. Here KEEP says how many tokens of a tile are left at the end, and by
default blocks take equal parts of the rest; `r` is the reference's rate, kept up until KEEP is reached. A block cannot
merge more than half of its tokens: where it should, the blocks before it merge more.

Behind the tower a token stands where the first patch stands that is merged in it. Of a picture with padding fewer
tokens than KEEP are used: those that hold padding alone are left out, and how many these are depends on the picture.
"""

import dataclasses
import itertools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from vila_jax.budgets.method import TowerMethod
from vila_jax.budgets.tower import even_schedule
from vila_jax.errors import BudgetError
from vila_jax.nn.tower_tokens import Tokens


@dataclasses.dataclass(frozen=True)
class ToMe(TowerMethod):
    """ToMe.

    Options:
      r: tokens that every block merges until KEEP are left; 0 divides the work evenly among all blocks.
    """

    name: ClassVar[str] = "tome"
    merges: ClassVar[bool] = True

    r: int = 0

    def __post_init__(self):
        if self.r < 0:
            raise BudgetError(f"r is {self.r}, but must not be negative", where="budget method 'tome'")

    def schedule(self, patches: int, kept: int, depth: int) -> tuple[int, ...]:
        return constant_schedule(patches, kept, self.r, depth) if self.r else halving_schedule(patches, kept, depth)

    def reduce(self, block: int, tokens: Tokens, keys: Float[Array, "R S heads H"], left: tuple[int, ...]) -> Tokens:
        pairs = keys.shape[1] - left[block]
        if pairs == 0:
            return tokens
        return merge(tokens, match(jnp.mean(keys.astype(jnp.float32), axis=2), tokens.first, pairs))


class Match(NamedTuple):
    """Pairs of tokens, one of either set.

    Attributes:
      source: of the first set, tokens that are merged, the most similar ones first.
      target: the token of the second set into which each is merged.
      rest: of the first set, tokens that stay, in the order in which they go on.
    """

    source: Int[Array, "R pairs"]
    target: Int[Array, "R pairs"]
    rest: Int[Array, "R rest"]


def match(metric: Float[Array, "R S H"], first: int, pairs: int) -> Match:
    """The most similar `pairs` (at most `S // 2`) of tokens dealt to two sets; `first` is the number of class tokens.

    Lower indices win ties; tokens whose similarity is NaN come last.
    """
    one, other = deal(metric / jnp.linalg.norm(metric, axis=-1, keepdims=True), first)
    similarity = jnp.einsum("RAH,RBH->RAB", one, other, precision=jax.lax.Precision.HIGHEST)
    best, target = similarity.max(axis=2), similarity.argmax(axis=2).astype(jnp.int32)
    order = jnp.argsort(-best, axis=1, stable=True).astype(jnp.int32)
    source, rest = order[:, :pairs], order[:, pairs:]
    return Match(source, jnp.take_along_axis(target, source, axis=1), jnp.sort(rest, axis=1) if first else rest)


def merge(tokens: Tokens, pairs: Match) -> Tokens:
    """The tokens after every source has become a part of its target: the rest, then the second set."""
    weighted, other = deal(tokens.patches.astype(jnp.float32) * tokens.sizes[:, :, None], tokens.first)
    size, other_size = deal(tokens.sizes[:, :, None], tokens.first)
    # A product with zeros and ones: scattered sums would be added in another order at every run on some devices.
    into = pairs.target[:, None, :] == jnp.arange(other.shape[1])[None, :, None]

    def merged(one: Float[Array, "R A D"], other: Float[Array, "R B D"]) -> Float[Array, "R U D"]:
        added = jnp.einsum(
            "RBp,RpD->RBD", into.astype(jnp.float32), _take(one, pairs.source), precision=jax.lax.Precision.HIGHEST
        )
        return jnp.concatenate([_take(one, pairs.rest), other + added], axis=1)

    sums, sizes = merged(weighted, other), merged(size, other_size)
    return tokens.followed(sums / sizes, _places(tokens, pairs, other.shape[1]), sizes[:, :, 0])


def deal(values: Shaped[Array, "R S D"], first: int) -> tuple[Shaped[Array, "R A D"], Shaped[Array, "R B D"]]:
    """Tokens to two sets by turns. A class token, left out here, is the first to be dealt."""
    return values[:, first::2], values[:, 1 - first :: 2]


def _places(tokens: Tokens, pairs: Match, second: int) -> Int[Array, "R S"]:
    """For every token, the number of the one that it has become a part of; the second set has `second`."""
    tiles, rest = pairs.rest.shape
    tile = jnp.arange(tiles)[:, None]
    one = jnp.zeros((tiles, rest + pairs.source.shape[1]), jnp.int32)
    one = one.at[tile, pairs.rest].set(jnp.arange(rest, dtype=jnp.int32)[None])
    one = one.at[tile, pairs.source].set(rest + pairs.target)
    places = jnp.zeros(tokens.sizes.shape, jnp.int32)
    places = places.at[:, tokens.first :: 2].set(one)
    return places.at[:, 1 - tokens.first :: 2].set(rest + jnp.arange(second, dtype=jnp.int32)[None])


def _take(values: Float[Array, "R A D"], index: Int[Array, "R K"]) -> Float[Array, "R K D"]:
    return jnp.take_along_axis(values, index[:, :, None], axis=1)


def halving_schedule(patches: int, kept: int, depth: int) -> tuple[int, ...]:
    """As `even_schedule` over all blocks, but no block takes more than half: where it would, earlier ones take more.

    Raises:
      BudgetError: even so too many are left.
    """
    left = [*even_schedule(patches, kept, 0, depth - 1, depth)]
    for block in reversed(range(depth - 1)):
        left[block] = min(left[block], 2 * left[block + 1])
    if patches > 2 * left[0]:
        least = -(-patches // 2**depth)
        raise BudgetError(
            f"a block merges at most half of its tokens: {depth} blocks leave {least} of {patches} or more, not {kept}",
            where="budget method 'tome'",
            fix=f"Keep at least {least} tokens of a tile.",
        )
    return tuple(left)


def constant_schedule(patches: int, kept: int, rate: int, depth: int) -> tuple[int, ...]:
    """`rate` fewer in every block (half of them, where there are not twice as many), until `kept` are left.

    Raises:
      BudgetError: the blocks are too few.
    """
    counts = itertools.accumulate(
        range(depth), lambda count, _: max(kept, count - min(rate, count // 2)), initial=patches
    )
    _, *left = counts
    if left[-1] > kept:
        raise BudgetError(
            f"{rate} fewer in each of {depth} blocks leave {left[-1]} of {patches} tokens of a tile, not {kept}",
            where="budget method 'tome'",
            fix=f"Give a larger r, leave it out, or keep {left[-1]} tokens.",
        )
    return tuple(left)
