"""The simple class for `lmms-eval`: a task gives a text and pictures, and the model's conversation goes around them."""

import functools
from collections.abc import Sequence
from typing import Any

from lmms_eval.api.instance import GenerationResult

from vila_jax.adapters.conversations import user_turn
from vila_jax.adapters.lmms_base import VilaLmms
from vila_jax.adapters.rounds import Following, Rounds


class VilaSimple(VilaLmms):
    """`--model vila_jax --force_simple`: pictures stand in front of the text, or where its `<image>` marks are."""

    is_simple = True

    def generate_until(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """One answer per request, whose args are (context, arguments, doc_to_visual, doc_id, task, split)."""
        asked = [
            functools.partial(self._turn, context, doc_to_visual, where)
            for context, _, doc_to_visual, *where in (request.args for request in requests)
        ]
        return self.answer(asked, [request.args[1] for request in requests])

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """Lists of answers; args are (context, arguments, doc_to_visual, doc_to_text, doc_id, task, split).

        From the second round on, `doc_to_text` gives pictures, context, whether that is the end, the answers so far,
        and what it wants to be told the next time.
        """
        return self.answer_rounds([self._rounds(*request.args) for request in requests])

    def _rounds(
        self, context: str, arguments: dict[str, Any], doc_to_visual: Any, doc_to_text: Any, *where: Any
    ) -> Rounds:
        def following(**told: Any) -> Following:
            visuals, context, over, outputs, info = doc_to_text(self.doc(*where), **told)
            return Following(None if over else functools.partial(user_turn, context, visuals), outputs, info)

        return Rounds(functools.partial(self._turn, context, doc_to_visual, where), arguments, following)

    def _turn(self, context: str, doc_to_visual: Any, where: Sequence[Any]) -> list[dict[str, Any]]:
        return user_turn(context, doc_to_visual(self.doc(*where)))
