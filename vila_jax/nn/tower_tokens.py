"""The tokens of a vision tower between two blocks, where a budget makes them fewer on the way.

A tower starts with one token per patch. A `Reduction` drops tokens, merges them, or hides them behind a mask, inside
every block between attention and MLP; the class token takes no part.

    patches     0  1  2  3  4  5        holder  0  0  1 -1  2  1       0 and 1 share token 0, patch 3 is dropped
    tokens      a     b     c           size    2  2  1

Behind the tower every patch reads the features of the token that holds it, so that nothing there need know of the
shorter sequence.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_HIDDEN = -1e3  # as a bias of attention scores: far below any score, and finite in float16 by `widen_by_bias`, too


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Tokens of the tiles of a batch: `S` of each, behind `first` that belong to no patch; `T = first + S`.

    Attributes:
      x: hidden states.
      first: class tokens, 0 or 1.
      holder: for each patch, the number (0 to S - 1) of the token that holds it; -1 where it was dropped.
      shown: patches that show the picture rather than padding.
      size: patches that a token holds, 0 for one that is hidden; None while every token holds one.
    """

    x: Float[Array, "R T D"]
    first: int
    holder: Int[Array, "R N"]
    shown: Bool[Array, "R N"]
    size: Float[Array, "R S"] | None = None

    @classmethod
    def of(cls, x: Float[Array, "R T D"], first: int, shown: Bool[Array, "R N"]) -> "Tokens":
        """One token per patch."""
        return cls(x, first, jax.lax.broadcasted_iota(jnp.int32, shown.shape, 1), shown)

    @property
    def patches(self) -> Float[Array, "R S D"]:
        """The hidden states without the class token."""
        return self.x[:, self.first :]

    @property
    def sizes(self) -> Float[Array, "R S"]:
        """`size`, in numbers."""
        return jnp.ones(self.patches.shape[:2], jnp.float32) if self.size is None else self.size

    @property
    def key_bias(self) -> Float[Array, "R T"] | None:
        """What attention adds to the scores of a key: the logarithm of its size, as if its patches were still apart."""
        if self.size is None:
            return None
        bias = jnp.where(self.size > 0, jnp.log(jnp.maximum(self.size, 1.0)), _HIDDEN)
        return jnp.pad(bias, ((0, 0), (self.first, 0)))

    @property
    def shows(self) -> Bool[Array, "R S"]:
        """Tokens that hold a patch which shows the picture."""
        return self._first_patch() < self.holder.shape[1]

    def with_states(self, x: Float[Array, "R T D"]) -> "Tokens":
        """The same tokens with other hidden states."""
        return dataclasses.replace(self, x=x)

    def followed(
        self, patches: Float[Array, "R U D"], new: Int[Array, "R S"], size: Float[Array, "R U"] | None
    ) -> "Tokens":
        """`U` tokens in place of these `S`: token `s` has become a part of token `new[s]`, or (-1) of none."""
        x = jnp.concatenate([self.x[:, : self.first], patches.astype(self.x.dtype)], axis=1)
        moved = jnp.take_along_axis(new, jnp.maximum(self.holder, 0), axis=1)
        return Tokens(x, self.first, jnp.where(self.holder < 0, -1, moved), self.shown, size)

    def spread_states(self) -> Float[Array, "R P D"]:
        """The hidden states, class token in front, with one vector for every patch; zeros for one that was dropped."""
        holder = self.holder[:, :, None]
        spread = jnp.where(holder < 0, 0, jnp.take_along_axis(self.patches, jnp.maximum(holder, 0), axis=1))
        return jnp.concatenate([self.x[:, : self.first], spread], axis=1)

    def stand_in(self) -> Int[Array, "R N"]:
        """For each patch, the patch that stands for the token that holds it; -1 where it was dropped.

        It is the first of the token's patches that shows the picture; of a token of padding alone, its first patch.
        """
        first = self._first_patch() % self.holder.shape[1]
        found = jnp.take_along_axis(first, jnp.maximum(self.holder, 0), axis=1)
        return jnp.where(self.holder < 0, -1, found)

    def _first_patch(self) -> Int[Array, "R S"]:
        """The first patch that a token holds, preferably one that shows the picture: to others `N` is added."""
        (tiles, patches), tokens = self.holder.shape, self.patches.shape[1]
        number = jax.lax.broadcasted_iota(jnp.int32, (tiles, patches), 1)
        number = jnp.where(self.shown, number, number + patches)
        tile = jax.lax.broadcasted_iota(jnp.int32, (tiles, patches), 0)
        place = jnp.where(self.holder < 0, tokens, self.holder)  # beyond the end: left out
        return jnp.full((tiles, tokens), 2 * patches, jnp.int32).at[tile, place].min(number, mode="drop")


@runtime_checkable
class Reduction(Protocol):
    """Makes the tokens of a tower fewer. Hashable, because it is a static argument of `jax.jit`."""

    def __call__(self, block: int, tokens: Tokens, keys: Float[Array, "R S heads H"]) -> Tokens:
        """The tokens that go on to the MLP of a block.

        Args:
          block: 0-based.
          tokens: behind the attention of that block, residual added.
          keys: of the patches in that attention.
        """
        ...
