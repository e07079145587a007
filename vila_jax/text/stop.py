"""Stop strings over streamed text."""

from collections.abc import Sequence

from vila_jax.errors import PromptError


class StopStrings:
    """Finds the first stop string to be completed, however the text is cut into pieces.

    Text that may become part of a stop string is held back until that is decided:

        stop "END":   push("an E") -> "an "     push("N") -> ""     push("D!") -> "", stopped
                                                push("x") -> "Ex"

    The stop string itself and everything after it is never emitted. Of two that end at the same place, the longer
    counts.

    Args:
      stops: the stop strings; none means that the text passes through.

    Raises:
      PromptError: a stop string is empty.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops = (stops,) if isinstance(stops, str) else tuple(stops)
        if not all(self._stops):
            raise PromptError(
                "a stop string is empty, so that it would stop every text", where="stop", fix="Remove it."
            )
        self._held = ""
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self._stopped

    def push(self, text: str) -> tuple[str, bool]:
        """Takes the next piece of text; returns the text that is certain, and whether a stop string was found."""
        if self._stopped:
            return "", True
        held = self._held + text
        found = [(start + len(stop), start) for stop in self._stops if (start := held.find(stop)) >= 0]
        if found:
            self._stopped, self._held = True, ""
            return held[: min(found)[1]], True
        keep = max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], False

    def flush(self) -> str:
        """The text held back, when no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that begins the stop string."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
