"""Asks a model very many things: in batches of one shape, prepared while the device works, answered in their order."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from vila_jax.adapters.decoding import Decoding
from vila_jax.batches import Bucket, ahead, batches, bucket_of
from vila_jax.errors import ContextLengthError, ImageError, PromptError, VilaError
from vila_jax.infer.answers import Generation
from vila_jax.infer.buckets import count_bucket
from vila_jax.infer.layout import Request
from vila_jax.infer.likelihood import Likelihood, Probe, in_order, make_probes
from vila_jax.model import Model

Maker = Callable[[], Request]
"""Prepares a request; called in another thread, one after another."""

OnDone = Callable[[int], object]
"""Told how many more are done."""

_AHEAD = 2
"""Batches that are prepared while the device works."""

_LENGTH_STEP = 64
"""Answers that the context ends may be a multiple of this long, so that prompts of unlike lengths can share a batch."""


@dataclasses.dataclass(frozen=True)
class _Ready:
    number: int
    request: Request
    bucket: Bucket
    new_tokens: int


@dataclasses.dataclass(frozen=True)
class _ReadyProbe:
    number: int
    probe: Probe
    bucket: Bucket


T = TypeVar("T", _Ready, _ReadyProbe)


def _bucket(one: _Ready | _ReadyProbe) -> Bucket:
    return one.bucket


class Bulk:
    """Asks a model with its own budget.

    Args:
      model: the model.
      rows: of a batch. A batch that is not full is filled up with its last row once full ones have gone before, so that
        no other shape is compiled.
    """

    def __init__(self, model: Model, rows: int):
        self.model, self.rows = model, rows

    def generate(
        self, makers: Sequence[Maker], decodings: Sequence[Decoding], *, seed: int = 0, on_done: OnDone = lambda n: None
    ) -> list[Generation | VilaError]:
        """An answer to every request, or the error that its prompt or its picture is to blame for.

        Args:
          makers: prepare the requests.
          decodings: how each is answered.
          seed: of the sampling; request `i` has `seed + i`.

        Raises:
          VilaError: nothing could be answered; the first error.
        """
        results: dict[int, Generation | VilaError] = {}
        groups: dict[Decoding, list[int]] = {}
        for number, decoding in enumerate(decodings):
            groups.setdefault(decoding, []).append(number)
        for decoding, numbers in groups.items():
            ready = self._ready(numbers, makers, decoding, results)
            for rows, batch in self._filled(batches(ready, self.rows, _bucket)):
                options = dataclasses.asdict(decoding) | {"max_new_tokens": rows[0].new_tokens}
                seeds = [seed + row.number for row in rows]
                answered = self._answer([row.request for row in rows], seeds, options)
                results |= {row.number: one for row, one in zip(batch, answered, strict=False)}
                on_done(len(batch))
        answers = [results[number] for number in range(len(makers))]
        failed = [answer for answer in answers if isinstance(answer, VilaError)]
        if failed and len(failed) == len(answers):
            raise failed[0]
        on_done(len(failed))
        return answers

    def log_likelihoods(
        self,
        requests: Sequence[Request],
        continuations: Sequence[Sequence[int]],
        *,
        on_done: OnDone = lambda n: None,
    ) -> list[Likelihood]:
        """How probable every continuation is after its request.

        Raises:
          VilaError: any of them is wrong.
        """
        probes = make_probes(requests, continuations)
        found: list[list[Likelihood]] = [[]] * len(probes)
        ready = map(self._ready_probe, range(len(probes)), probes)
        for rows, batch in self._filled(batches(ready, self.rows, _bucket)):
            scored = self.model.engine.log_likelihoods([row.probe for row in rows], budget=self.model.budget)
            for row, own in zip(batch, scored, strict=False):
                found[row.number] = own
            on_done(sum(len(row.probe.numbers) for row in batch))
        return in_order(probes, found)

    def _ready(
        self,
        numbers: Sequence[int],
        makers: Sequence[Maker],
        decoding: Decoding,
        results: dict[int, Generation | VilaError],
    ) -> Iterator[_Ready]:
        """Prepared requests; errors of their own go to the results."""

        def prepare(number: int) -> _Ready | tuple[int, VilaError]:
            try:
                return self._prepared(number, makers[number](), decoding.max_new_tokens)
            except (PromptError, ImageError) as error:
                return number, error

        for one in ahead(prepare, numbers, workers=1, window=_AHEAD * self.rows):
            if isinstance(one, _Ready):
                yield one
            else:
                results[one[0]] = one[1]

    def _prepared(self, number: int, request: Request, new_tokens: int) -> _Ready:
        """With as many new tokens as fit behind a prompt that fits: harnesses ask for 1024 where a word is meant."""
        planner, budget = self.model.engine.planner, self.model.budget
        try:
            bucket = bucket_of(planner, request, budget, new_tokens)
        except ContextLengthError:
            [count] = planner.layout([request], budget, 1).counts
            room = self.model.config.context_length - count.prompt - count.skipped
            new_tokens = room - room % _LENGTH_STEP if room > _LENGTH_STEP else room
            bucket = bucket_of(planner, request, budget, new_tokens)
        (kind, lengths) = bucket
        return _Ready(number, request, ((kind, new_tokens), lengths), new_tokens)

    def _ready_probe(self, number: int, probe: Probe) -> _ReadyProbe:
        kind, lengths = bucket_of(self.model.engine.planner, probe.request, self.model.budget, 0)
        return _ReadyProbe(number, probe, (kind, (count_bucket(len(probe.targets)), *lengths)))

    def _filled(self, found: Iterator[list[T]]) -> Iterator[tuple[list[T], list[T]]]:
        """Every batch as it is computed, and as it is."""
        full = False
        for batch in found:
            full = full or len(batch) == self.rows
            yield batch + [batch[-1]] * (self.rows - len(batch)) * full, batch

    def _answer(self, requests: list[Request], seeds: list[int], options: dict) -> list[Generation]:
        answers = self.model.answers_to(requests, seed=seeds, **options)
        for _ in answers:
            pass
        return answers.results()
