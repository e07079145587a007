"""Tasks of `lmms-eval` that ask again, depending on the answers so far."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Asked = Callable[[], Sequence[Any]]
"""Makes messages in the form of `doc_to_messages`; called when they are needed, in another thread."""


class Following(NamedTuple):
    """What a task says behind a round.

    Attributes:
      asked: makes the messages of the next round; None where there is none.
      outputs: the answers so far, which the task may have changed.
      info: what it wants to be told the next time.
    """

    asked: Asked | None
    outputs: Sequence[str]
    info: Any


class Rounds:
    """One document on its way through its rounds.

    Args:
      asked: makes the messages of the first round.
      arguments: `generation_kwargs` of every round.
      following: what comes next, told `previous_output`, `round_idx` and `previous_round_info` by these names.

    Attributes:
      asked: of the coming round; None when the task is over.
      outputs: the answers, as the task left them.
      results: of all rounds.
    """

    def __init__(self, asked: Asked, arguments: dict[str, Any], following: Callable[..., Following]):
        self.asked: Asked | None = asked
        self.arguments, self.outputs, self.results = arguments, list[str](), list[Any]()
        self._following, self._info = following, None

    def take(self, result: Any) -> None:
        """Takes the answer of a round (a `GenerationResult`), and asks the task what comes next."""
        self.results.append(result)
        told = {"round_idx": len(self.results), "previous_round_info": self._info}
        self.asked, outputs, self._info = self._following(previous_output=[*self.outputs, result.text], **told)
        self.outputs = list(outputs)
