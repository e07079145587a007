"""A mapping that holds so many bytes of device memory; what was used least recently leaves first."""

import collections
from collections.abc import Hashable, Iterator
from typing import Any, Generic, TypeVar

import jax

from vila_jax.errors import ConfigError

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """Values are pytrees of arrays. Not safe for several threads at once.

    Args:
      max_bytes: of all values together; a value that is larger alone is not kept.
      where: names the setting in errors.

    Attributes:
      nbytes: of what is held now.

    Raises:
      ConfigError: the size is negative.
    """

    def __init__(self, max_bytes: int, where: str):
        if max_bytes < 0:
            raise ConfigError(f"got {max_bytes} bytes", where=where, fix="Give a size in bytes; 0 switches it off.")
        self.max_bytes, self.nbytes = max_bytes, 0
        self._held: collections.OrderedDict[K, V] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: object) -> bool:
        return key in self._held

    def items(self) -> Iterator[tuple[K, V]]:
        """Least recently used first; does not count as use."""
        yield from self._held.items()

    def peek(self, key: K) -> V | None:
        """The value, without using it."""
        return self._held.get(key)

    def get(self, key: K) -> V | None:
        """The value, used now."""
        if key in self._held:
            self._held.move_to_end(key)
        return self._held.get(key)

    def put(self, key: K, value: V) -> None:
        """Holds a value, in place of any other under its key, and lets go of what there is no more room for."""
        self.drop(key)
        size = size_of(value)
        if size > self.max_bytes:
            return
        self._held[key] = value
        self.nbytes += size
        while self.nbytes > self.max_bytes:
            self.drop(next(iter(self._held)))

    def drop(self, key: K) -> None:
        """Lets go of a value, if it is held."""
        if key in self._held:
            self.nbytes -= size_of(self._held.pop(key))

    def clear(self) -> None:
        """Lets go of everything."""
        self._held.clear()
        self.nbytes = 0


def size_of(value: Any) -> int:
    """Bytes of the arrays of a pytree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(value))
