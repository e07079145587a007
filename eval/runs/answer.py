"""Asks a model the samples of a run, batch by batch, and hands on the records of what became of them."""

import dataclasses
import operator
from collections.abc import Iterable, Iterator, Mapping

from eval.runs.identity import Generation
from eval.runs.items import Item
from eval.runs.prepare import Prepared, Preparer, failed
from eval.runs.records import Record
from vila_jax.batches import ahead, batches
from vila_jax.budgets import Budget
from vila_jax.infer.answers import Answers, Row
from vila_jax.infer.sampler import SamplingOptions
from vila_jax.model import Model

_AHEAD = 4
"""Batches that are prepared while the device works."""


@dataclasses.dataclass(frozen=True)
class Runner:
    """Asks greedily, in batches of one static size.

    Attributes:
      batch: samples that are answered together. A shorter batch is filled up with its last sample.
      workers: threads that prepare pictures while the device works.
    """

    model: Model
    batch: int
    workers: int

    def records(
        self,
        items: Iterable[Item],
        budget: Budget | None,
        generation: Generation,
        run_id: str,
        before: Mapping[int, Record] | None = None,
    ) -> Iterator[list[Record]]:
        """The records of samples that are done together: answered ones by batches, those that failed before alone.

        They come in the order in which they are finished. Samples that are done before come as an empty list each, so
        that progress can be told.

        Args:
          before: records of earlier sessions; what is answered there is not asked again.
        """
        preparer = Preparer(self.model, budget, generation, run_id, before or {})
        window = max(_AHEAD * self.batch, self.workers)
        early: list[list[Record]] = []

        def ready() -> Iterator[Prepared]:
            for result in ahead(preparer, items, workers=self.workers, window=window):
                if isinstance(result, Prepared):
                    yield result
                else:
                    early.append([] if result is None else [result])

        for own in batches(ready(), self.batch, operator.attrgetter("bucket")):
            yield from early
            early.clear()
            yield self._answered(own, budget, generation)
        yield from early

    def _answered(self, batch: list[Prepared], budget: Budget | None, generation: Generation) -> list[Record]:
        """If a batch fails, its samples are asked one by one, to find out whose fault it was."""
        try:
            return self._ask(batch, budget, generation)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            if len(batch) == 1:
                return [failed(batch[0].record, error)]
            return [record for sample in batch for record in self._answered([sample], budget, generation)]

    def _ask(self, batch: list[Prepared], budget: Budget | None, generation: Generation) -> list[Record]:
        requests = [batch[min(i, len(batch) - 1)].request for i in range(self.batch)]
        ends, greedy = self.model.end_tokens, [SamplingOptions()] * self.batch
        run = self.model.engine.generate(requests, greedy, generation.max_new_tokens, budget=budget, end_tokens=ends)
        answers = Answers(run, [Row(self.model.tokenizer, generation.stop, ends) for _ in requests], preprocess=0.0)
        for _ in answers:
            pass
        records = []
        for sample, result in zip(batch, answers.results(), strict=False):
            usage, spent = result.usage, result.timings
            tokens = {
                "text": usage.text_tokens,
                "visual": usage.visual_tokens_kept,
                "visual_full": usage.visual_tokens_full,
                "new": usage.completion_tokens,
            }
            seconds = {"prefill": spent.prefill / len(batch), "decode": spent.decode / len(batch)}
            records.append(
                dataclasses.replace(
                    sample.record,
                    answer=result.text,
                    tokens=tokens,
                    finish=result.finish_reason,
                    seconds={**sample.record.seconds, **seconds},
                )
            )
        return records


def is_out_of_memory(error: Exception) -> bool:
    """Which is no sample's fault: a smaller batch is."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
