"""What the two classes for `lmms-eval` share.

Written against lmms-eval 0.7.3: `lmms_eval/api/model.py`, `api/instance.py` and `api/task.py`.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from loguru import logger
from tqdm import tqdm

from vila_jax.adapters import loading
from vila_jax.adapters.bulk import Bulk
from vila_jax.adapters.conversations import Conversation, conversation, user_turn
from vila_jax.adapters.decoding import Decoding
from vila_jax.adapters.rounds import Asked, Rounds
from vila_jax.errors import VilaError
from vila_jax.infer.answers import Generation
from vila_jax.infer.layout import Request

T = TypeVar("T")

_WINDOW = 4
"""Batches of answers that are prepared before they are scored."""


class VilaLmms(lmms):
    """A model of ours in `lmms-eval`; the arguments are those of `--model_args` and the command line.

    Args:
      pretrained: a folder or a Hub id; `nano` is the embedded model.
      budget: of visual tokens, `hired:0.2` or `hired:115;alpha=0.3`; a number alone is HiRED's.
      batch_size: rows of a batch.
      max_new_tokens: where a task names no length.
      num_frames: of a video; by default as many as the checkpoint was trained with.
      system_prompt: a text, or a file that holds it.
      seed: of tasks that sample.
      **options: see `loading.load`.

    Raises:
      VilaError: an argument is unknown or wrong, or the model cannot be loaded.
    """

    def __init__(
        self,
        pretrained: str,
        budget: str | int | float | None = None,
        *,
        batch_size: int | str = 1,
        max_new_tokens: int = 1024,
        num_frames: int | None = None,
        system_prompt: str = "",
        seed: int = 0,
        **options: Any,
    ):
        super().__init__()
        rows = loading.batch_rows(batch_size)
        self.vila = loading.load(pretrained, budget, **options)
        self.bulk = Bulk(self.vila, rows)
        self.system_prompt = self._resolve_system_prompt(system_prompt)
        self.num_frames, self.max_new_tokens, self.seed = num_frames, max_new_tokens, seed

    def doc(self, doc_id: int, task: str, split: str) -> Any:
        """A document of a task."""
        return self.task_dict[task][split][doc_id]

    def answer(self, asked: Sequence[Asked], arguments: Sequence[dict[str, Any]]) -> list[GenerationResult]:
        """Answers to conversations, in their order; an empty one, and a line in the log, where one cannot be read.

        Input tokens are those that the decoder reads: text, and the visual tokens that the budget leaves.
        """
        if not asked:
            return []
        decodings = [Decoding.of(own, self.max_new_tokens) for own in arguments]
        makers = [functools.partial(self._request, own) for own in asked]
        with tqdm(total=len(asked), desc="Model Responding", disable=self.rank != 0) as bar:
            answers = self.bulk.generate(makers, decodings, seed=self.seed, on_done=bar.update)
        self._report(answers)
        return [_result(answer) for answer in answers]

    def answer_rounds(self, rounds: Sequence[Rounds]) -> list[GenerationResult]:
        """All answers of every document, as lists; the rounds of those that go on are answered together."""
        while live := [own for own in rounds if own.asked is not None]:
            results = self.answer([own.asked for own in live if own.asked], [own.arguments for own in live])
            for own, result in zip(live, results, strict=True):
                own.take(result)
        return [GenerationResult(own.outputs, _together(own.results)) for own in rounds]

    def loglikelihood(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """The loss of each answer, and whether it is the greedy one: a pair in the place of a result's text.

        The loss is the mean over tokens of the negative log-probability, the end token among them. That is what the
        harness's own models return, and its multiple choice takes the smallest (`api/task.py`), although its base class
        speaks of log-likelihoods. A bare pair, which they return as well, the evaluator of 0.7.3 turns into a text
        (`api/instance.py`), and then fails.
        """
        scored: list[GenerationResult] = []
        with tqdm(total=len(requests), desc="Model Scoring", disable=self.rank != 0) as bar:
            for window in _windows(self._finished(requests), _WINDOW * self.bulk.rows):
                found = self.bulk.log_likelihoods(*zip(*window, strict=True), on_done=bar.update)
                scored += [GenerationResult((-one.total / len(one.log_probs), one.is_greedy)) for one in found]
        return scored

    def _finished(self, requests: Sequence[Any]) -> Iterator[tuple[Request, list[int]]]:
        """Conversations and their answers; choices of one document share its pictures."""
        choices = map(self._choice, (request.args for request in requests))
        for (context, where), group in itertools.groupby(choices, key=lambda choice: choice[:2]):
            visuals = None if where is None else where[0](self.doc(*where[1:]))
            messages, images = self._conversation(user_turn(context, visuals))
            yield from self.vila.finished(messages, [answer for *_, answer in group], images)

    def _choice(self, args: tuple[Any, ...]) -> tuple[str, tuple[Any, ...] | None, str]:
        """Context, where its pictures are, and the answer; unconditional answers come without pictures."""
        if len(args) == 2:
            return args[0], None, args[1]
        context, target, doc_to_visual, *where = args
        answer = target(self.doc(*where)) if callable(target) else target
        return context, (doc_to_visual, *where), str(answer)

    def _conversation(self, messages: Sequence[Any]) -> Conversation:
        token = self.vila.tokenizer.image_token
        return conversation(messages, token, system=self.system_prompt, num_frames=self.num_frames)

    def _request(self, asked: Asked) -> Request:
        messages, images = self._conversation(asked())
        return self.vila.request(messages=messages, images=images)

    def _report(self, answers: Sequence[Generation | VilaError]) -> None:
        """Says how many visual tokens there were, and which answers are missing."""
        failed = [(number, answer) for number, answer in enumerate(answers) if isinstance(answer, VilaError)]
        for number, error in failed:
            logger.error(f"request {number} cannot be read and is answered with nothing: {error}")
        if failed:
            logger.error(f"{len(failed)} of {len(answers)} requests were answered with nothing")
        kept = [answer.usage.visual_tokens_kept for answer in answers if isinstance(answer, Generation)]
        full = [answer.usage.visual_tokens_full for answer in answers if isinstance(answer, Generation)]
        if any(full):
            logger.info(
                f"visual tokens per request with budget {self.vila.budget}: {np.mean(kept):.1f} of {np.mean(full):.1f} "
                f"on average, {min(kept)} to {max(kept)}"
            )


def _result(answer: Generation | VilaError) -> GenerationResult:
    if isinstance(answer, VilaError):
        return GenerationResult("")
    return GenerationResult(answer.text, TokenCounts(answer.usage.prompt_tokens, answer.usage.completion_tokens))


def _together(results: Sequence[GenerationResult]) -> TokenCounts:
    """The tokens of several rounds."""
    counts = [result.token_counts for result in results if result.token_counts is not None]
    return TokenCounts(sum(own.input_tokens for own in counts), sum(own.output_tokens for own in counts))


def _windows(things: Iterable[T], size: int) -> Iterator[list[T]]:
    things = iter(things)
    while window := list(itertools.islice(things, size)):
        yield window
