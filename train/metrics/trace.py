"""`--profile FROM:TO`: what the machine does in these steps, as a trace to look at."""

from pathlib import Path
from typing import Any

import jax

from vila_jax.errors import ConfigError


class Trace:
    """Traces some steps of a run; the loop says when each begins and ends.

    Args:
      folder: where the trace goes.
      first, last: steps, counted from 1. A run that begins between them traces the rest.
    """

    def __init__(self, folder: Path, first: int, last: int):
        self.folder, self._first, self._last, self._on = folder, first, last, False

    @classmethod
    def parse(cls, text: str, folder: Path) -> "Trace":
        """The trace that `FROM:TO` asks for.

        Raises:
          ConfigError: it is something else.
        """
        ends = text.split(":")
        if len(ends) != 2 or not all(end.isdecimal() for end in ends) or not 1 <= int(ends[0]) <= int(ends[1]):
            raise ConfigError(f"got {text!r}", where="--profile", fix="Name the first and the last step: 20:25")
        return cls(folder, int(ends[0]), int(ends[1]))

    def before(self, step: int) -> None:
        """To be called before a step is dispatched."""
        if not self._on and self._first <= step <= self._last:
            self.folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(self.folder)
            self._on = True

    def after(self, step: int, results: Any) -> str | None:
        """To be called when it was dispatched; waits for its results if it is the last one.

        Returns:
          How to look at the trace, once it is written.
        """
        if not self._on or step < self._last:
            return None
        jax.block_until_ready(results)
        self.close()
        return (
            f"traced to {self.folder}; look at it with: pip install xprof && xprof --logdir={self.folder}"
            " (or drop its *.trace.json.gz on https://ui.perfetto.dev)"
        )

    def close(self) -> None:
        """Ends a trace that is being written."""
        if self._on:
            self._on = False
            jax.profiler.stop_trace()
