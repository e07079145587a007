"""Keys and values of what was read before: the next turn of a conversation reads only what is new.

A row is a sequence of *pieces*, tokens of text and placeholders of visual tokens, and two rows that begin with the same
pieces have the same keys and values there, since attention is causal. A piece of text is named by its id, visual tokens
by what they follow from: the pixels of the picture and the budget.

    kept       <s> USER: [picture A] w1 w2  ASSISTANT: w3 w4                      its cache, prompt and answer
    new        <s> USER: [picture A] w1 w2  ASSISTANT: w3 w4 </s> USER: w5 ...
                                     what both share, copied  |  read now

What cannot be exact is not kept: under a budget inside the decoder the tokens that are left depend on the question, and
with `dynamic` rope the angles depend on the length of the row.
"""

import dataclasses
import itertools
import math
from collections.abc import Hashable

import jax
import jax.numpy as jnp
import numpy as np

from vila_jax.budgets import Budget
from vila_jax.errors import ConfigError
from vila_jax.infer.lru import BoundedCache
from vila_jax.infer.prefill import Before
from vila_jax.nn.cache import length as room_of
from vila_jax.nn.config import DecoderConfig
from vila_jax.nn.decoder import Cache, empty_cache
from vila_jax.vision.geometry import TileGeometry


@dataclasses.dataclass(frozen=True)
class Visual:
    """The name of the visual tokens of one placeholder.

    Attributes:
      content: of the pictures of the medium, what their pixels are and how they become tokens.
      budget: what chose among them.
      number: of the placeholder among those of its medium, which are read together or not at all.
    """

    content: tuple[tuple[bytes, TileGeometry], ...]
    budget: Budget | None
    number: int


@dataclasses.dataclass(frozen=True)
class Passage:
    """A row, piece by piece.

    Attributes:
      names: an id, or `Visual`.
      entries: of the cache, that each piece takes.
      positions: that each piece takes up, where tokens keep their original ones; else each entry takes one.
    """

    names: tuple[Hashable, ...]
    entries: tuple[int, ...]
    positions: tuple[int, ...] | None = None

    def shared(self, other: "Passage") -> int:
        """Pieces that both begin with."""
        pairs = zip(self.names, other.names, strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    def followed_by(self, tokens: list[int]) -> "Passage":
        """With tokens of text behind it."""
        ones = (1,) * len(tokens)
        positions = None if self.positions is None else self.positions + ones
        return Passage(self.names + tuple(tokens), self.entries + ones, positions)


@dataclasses.dataclass(frozen=True)
class Found:
    """What is known of a row.

    Attributes:
      names: of the pieces that need not be read.
      entries: that each of them takes of the cache; fewer than planned where a budget has left slots unused.
      position: of what follows.
      cache: of the row that they were read with.
    """

    names: tuple[Hashable, ...]
    entries: tuple[int, ...]
    position: int
    cache: Cache

    @property
    def length(self) -> int:
        """Of the cache, used or not."""
        return room_of(self.cache[0][0])

    @property
    def before(self) -> Before:
        """For the prefill of a single row."""
        return Before(self.cache, *np.asarray([[sum(self.entries)], [self.position]], np.int32))


class PrefixCache:
    """Rows that were read, with their answers. A row that goes on from another takes its place.

    One may serve any number of conversations with one model, one after another.

    Args:
      max_bytes: of device memory; a row that needs more alone is not kept.

    Raises:
      ConfigError: the size is negative.
    """

    def __init__(self, max_bytes: int):
        self._held: BoundedCache[Passage, Cache] = BoundedCache(max_bytes, "max_bytes")
        self._owner: object | None = None

    @property
    def nbytes(self) -> int:
        """Of device memory, held now."""
        return self._held.nbytes

    def __len__(self) -> int:
        return len(self._held)

    def clear(self) -> None:
        """Lets go of all rows."""
        self._held.clear()

    def belong_to(self, owner: object) -> None:
        """Holds rows of one model alone: keys and values of another would be found under the same names.

        Raises:
          ConfigError: it has served another.
        """
        if self._owner is not None and self._owner is not owner:
            raise ConfigError(
                "it holds rows of another model", where="prefixes", fix="Give every model a PrefixCache of its own."
            )
        self._owner = owner

    def find(self, passage: Passage) -> Found | None:
        """What is known of the beginning of a row, if anything is; at least its last piece is left to read."""
        shared = {key: key.shared(passage) for key, _ in self._held.items()}
        if not shared:
            return None
        key = max(shared, key=lambda key: shared[key])
        pieces = min(shared[key], len(passage.names) - 1)
        pieces = _outside_media(passage, pieces)
        if not pieces:
            return None
        cache, places = self._held.get(key), key.entries if key.positions is None else key.positions
        assert cache is not None
        return Found(passage.names[:pieces], key.entries[:pieces], sum(places[:pieces]), cache)

    def keep(self, passage: Passage, cache: Cache) -> None:
        """Keeps a row, in place of those that it goes on from."""
        for key, _ in list(self._held.items()):
            if passage.names[: len(key.names)] == key.names:
                self._held.drop(key)
        self._held.put(passage, cache)


def row_bytes(config: DecoderConfig, length: int, dtype: str) -> int:
    """Device memory that the keys and values of one row take."""
    leaves = jax.tree.leaves(jax.eval_shape(lambda: empty_cache(config, 1, length, jnp.dtype(dtype))))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def _outside_media(passage: Passage, at: int) -> int:
    """The last place up to this one at which no medium has only begun."""
    following = next((name for name in passage.names[at:] if isinstance(name, Visual)), None)
    if following is None or following.number == 0:
        return at
    first = dataclasses.replace(following, number=0)
    return max(i for i in range(at) if passage.names[i] == first)
