"""The tokens of a vision tower between two blocks, where a budget makes them fewer on the way.

A tower starts with one token per patch. What shortens it (`Reduction`) works inside every block, between attention and
MLP: it drops tokens, merges them, or hides them behind a mask. The class token takes no part.

    patches     0  1  2  3  4  5        holder  0  0  1 -1  2  1       0 and 1 share token 0, patch 3 is dropped
    tokens      a     b     c           size    2  2  1

Behind the tower every patch reads the features of the token that holds it, so that nothing there knows of the shorter
sequence; `stand_in` says which patch stands for a token.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

_HIDDEN = -1e4  # as a bias of attention scores: far below any score, and finite in float16


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Tokens of the tiles of a batch; `S` of each tile, behind `first` that belong to no patch.

    Attributes:
      x: hidden states, `T = first + S`.
      first: class tokens.
      holder: for each patch, the number (0 to S - 1) of the token that holds it; -1 where it is dropped.
      shown: patches that show the picture rather than padding.
      size: patches that a token holds, 0 for one that is hidden; None while every token holds one.
    """

    x: Float[Array, "R T D"]
    first: int
    holder: Int[Array, "R N"]
    shown: Bool[Array, "R N"]
    size: Float[Array, "R S"] | None = None

    @classmethod
    def of(cls, x: Float[Array, "R T D"], first: int, shown: Bool[Array, "R N"] | None) -> "Tokens":
        """One token per patch."""
        tiles, patches = x.shape[0], x.shape[1] - first
        holder = jnp.broadcast_to(jnp.arange(patches, dtype=jnp.int32), (tiles, patches))
        return cls(x, first, holder, jnp.ones(holder.shape, bool) if shown is None else shown)

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

    def followed(
        self, patches: Float[Array, "R U D"], new: Int[Array, "R S"], size: Float[Array, "R U"] | None
    ) -> "Tokens":
        """The tokens after a step that made token `s` a part of token `new[s]`, or of none where that is -1."""
        x = jnp.concatenate([self.x[:, : self.first], patches.astype(self.x.dtype)], axis=1)
        moved = jnp.take_along_axis(new, jnp.maximum(self.holder, 0), axis=1)
        return Tokens(x, self.first, jnp.where(self.holder < 0, -1, moved), self.shown, size)

    def with_states(self, x: Float[Array, "R T D"]) -> "Tokens":
        """The same tokens with other hidden states."""
        return dataclasses.replace(self, x=x)

    def spread(self, values: Shaped[Array, "R S *width"]) -> Shaped[Array, "R N *width"]:
        """Values of the tokens -> of the patches: those of the token that holds a patch, zeros where none does."""
        width = (1,) * (values.ndim - 2)
        holder = self.holder.reshape(*self.holder.shape, *width)
        return jnp.where(holder < 0, 0, jnp.take_along_axis(values, jnp.maximum(holder, 0), axis=1))

    def spread_states(self) -> Float[Array, "R P D"]:
        """The hidden states, class token in front, with one vector for every patch."""
        return jnp.concatenate([self.x[:, : self.first], self.spread(self.patches)], axis=1)

    def stand_in(self) -> Int[Array, "R N"]:
        """For each patch, the patch that stands for the token that holds it; -1 where it is dropped.

        It is the first of the token's patches that shows the picture; of a token of padding alone, its first patch.
        """
        patches = self.holder.shape[1]
        number = jnp.arange(patches, dtype=jnp.int32)
        rank = jnp.where(self.shown, number, number + patches)
        tokens = self.patches.shape[1]

        def first_of_tile(holder: Int[Array, " N"], rank: Int[Array, " N"]) -> Int[Array, " S"]:
            place = jnp.where(holder < 0, tokens, holder)
            return jnp.full(tokens, 2 * patches, jnp.int32).at[place].min(rank, mode="drop")

        first = jax.vmap(first_of_tile)(self.holder, rank) % patches
        found = jnp.take_along_axis(first, jnp.maximum(self.holder, 0), axis=1)
        return jnp.where(self.holder < 0, -1, found)


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
