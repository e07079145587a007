"""What a run tells of a step, and what listens to it."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Row:
    """What is told of a step.

    Attributes:
      step: counted from 1.
      values: by name, such as `loss` or `learning_rate/projector`; see `Meter` for all.
    """

    step: int
    values: Mapping[str, float]


class Writer:
    """Somewhere that rows go; this one forgets them."""

    def advance(self, step: int, seconds_left: float | None) -> None:
        """A step is done, whether it is logged or not.

        Args:
          seconds_left: to the end of the run; None as long as that is not known.
        """

    def write(self, row: Row) -> None:
        """A step is logged."""

    def note(self, step: int, text: str) -> None:
        """Something happened at a step."""

    def close(self) -> None:
        """The run is over, or stops here."""
