"""The chat class for `lmms-eval`: a task gives messages, with pictures and videos in their places."""

import functools
from collections.abc import Sequence
from typing import Any

from lmms_eval.api.instance import GenerationResult

from vila_jax.adapters.lmms_base import VilaLmms
from vila_jax.adapters.rounds import Following, Rounds


class VilaChat(VilaLmms):
    """`--model vila_jax`."""

    is_simple = False

    def generate_until(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """One answer per request, whose args are (context, doc_to_messages, arguments, doc_id, task, split)."""
        asked = [
            functools.partial(self._messages, doc_to_messages, where)
            for _, doc_to_messages, _, *where in (request.args for request in requests)
        ]
        return self.answer(asked, [request.args[2] for request in requests])

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """Lists of answers; the args are those of `generate_until`.

        From the second round on, `doc_to_messages` gives messages, whether that is the end, the answers so far, and
        what it wants to be told the next time. Where it gives anything else, the task has one round.
        """
        return self.answer_rounds([self._rounds(*request.args) for request in requests])

    def _rounds(self, _: str, doc_to_messages: Any, arguments: dict[str, Any], *where: Any) -> Rounds:
        def following(previous_output: list[str], **told: Any) -> Following:
            payload = doc_to_messages(self.doc(*where), previous_output=previous_output, **told)
            if not (isinstance(payload, tuple) and len(payload) == 4):
                return Following(None, previous_output, None)
            messages, over, outputs, info = payload
            return Following(None if over else lambda: messages, outputs, info)

        return Rounds(functools.partial(self._messages, doc_to_messages, where), arguments, following)

    def _messages(self, doc_to_messages: Any, where: Sequence[Any]) -> Sequence[Any]:
        return doc_to_messages(self.doc(*where))
