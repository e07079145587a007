"""Where a run stands in its data: batches made ahead, each with the position behind it.

A prefetching iterator has read further than the loop has trained, so neither its source's state nor a count of steps is
where the run stands. Here every batch travels with the state that its source had right behind it, and `state()` is that
of the batch last taken.
"""

import json
from collections.abc import Iterator
from typing import Any, Protocol

from grain.experimental import ThreadPrefetchDatasetIterator

from vila_jax.errors import CheckpointError


class Source(Protocol):
    """Batches in an order of their own, as grain's iterators give them: `set_state` goes on where `get_state` was."""

    def __next__(self) -> Any: ...
    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...


class Positioned(Iterator[Any]):
    """The batches of a source, made ahead on a thread.

    Args:
      source: nobody else may take from it.
      prefetch: batches that are made ahead.
    """

    def __init__(self, source: Source, prefetch: int):
        self._source = source
        self._ahead = ThreadPrefetchDatasetIterator(source, prefetch)
        self._prefetch, self._taken = prefetch, 0

    def __next__(self) -> Any:
        batch = next(self._ahead)
        self._taken += 1
        return batch

    def state(self) -> dict[str, Any]:
        """The position behind the batch last taken, as a JSON object."""
        return json.loads(json.dumps({"taken": self._taken, "source": self._ahead.get_state()}))

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on behind the batch that was the last when `state` was asked for, and begins to make batches.

        Raises:
          CheckpointError: it is no position in such a stream.
        """
        try:
            self._taken = state["taken"]
            self._ahead.set_state(state["source"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CheckpointError(
                f"the position does not fit the data ({type(error).__name__}: {error})",
                where="position",
                fix="Data sets must not change while a run is unfinished; put back those that it began with.",
            ) from error
        if self._prefetch:
            self._ahead.start_prefetch()

    def close(self) -> None:
        """Ends the thread."""
        self._ahead.close()
