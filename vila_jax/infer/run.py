"""One batch on its way: prefill, then chunks of decode steps."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Bool, Int

from vila_jax.infer.counts import Counts
from vila_jax.infer.layout import Layout
from vila_jax.infer.phases import Phases
from vila_jax.infer.sampler import Sampler, SamplingOptions


@dataclasses.dataclass
class Timings:
    """Seconds of wall time. `compile` is not part of the others.

    Attributes:
      prefill: from laid-out arrays to the first token.
      decode: all further tokens.
    """

    compile: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Tokens that became known together: for every real row the new ids, and whether it is finished."""

    tokens: list[list[int]]
    done: list[bool]


class Run:
    """Iterate, once, for chunks of tokens; `stop(row)` ends a row before its limit (a stop string was met).

    Args:
      phases: the work.
      layout: the batch.
      sampling: options of the real rows.
      new_tokens: that each row may generate.
      end_tokens: tokens that finish a row.

    Attributes:
      counts: tokens of every prompt; those kept are exact from the first chunk on.
      timings: so far.
    """

    def __init__(
        self,
        phases: Phases,
        layout: Layout,
        sampling: Sequence[SamplingOptions],
        new_tokens: int,
        end_tokens: Sequence[int],
    ):
        self.counts: list[Counts] = layout.counts
        self.timings = Timings()
        self._phases = phases
        self._stopped: set[int] = set()
        filler = len(layout.prompts.token_ids) - len(sampling)
        self._sampler = Sampler.of([*sampling, *[SamplingOptions()] * filler])
        self._limit = np.asarray([new_tokens] * len(sampling) + [0] * filler, np.int32)
        self._ends = np.asarray(end_tokens or [-1], np.int32)
        self._chunks = self._generate(layout)

    def __iter__(self) -> Iterator[Chunk]:
        return self._chunks

    def stop(self, row: int) -> None:
        """Ends a row; the others go on."""
        self._stopped.add(row)

    def _generate(self, layout: Layout) -> Iterator[Chunk]:
        phases, rows = self._phases, len(self.counts)
        with self._clock("prefill"):
            progress = jax.block_until_ready(phases.prefill(layout, self._sampler, self._limit, self._ends))
        self._settle_counts(np.asarray(progress.lengths)[:rows])
        done = np.asarray(progress.done)
        if not done.all():  # compiled before the first token is handed out, so that a stream does not stall after it
            with self._clock("decode"):
                phases.compile_decode(progress, self._stopped_rows(), self._sampler, self._ends, layout.schedule)
        yield Chunk([[int(token)] for token in np.asarray(progress.token)[:rows]], done[:rows].tolist())
        while not (done | self._stopped_rows()).all():
            with self._clock("decode"):
                chunk = phases.decode(progress, self._stopped_rows(), self._sampler, self._ends, layout.schedule)
                progress, tokens = jax.block_until_ready(chunk)
            done = np.asarray(progress.done)
            yield Chunk([row[row >= 0].tolist() for row in np.asarray(tokens)[:rows]], done[:rows].tolist())

    def _stopped_rows(self) -> Bool[np.ndarray, " B"]:
        return np.isin(np.arange(len(self._limit)), list(self._stopped))

    def _settle_counts(self, lengths: Int[np.ndarray, " rows"]) -> None:
        """Budgets may leave slots unused: how many tokens a row really has is known once it was read."""
        self.counts = [
            dataclasses.replace(count, visual_kept=int(length) - count.text)
            for count, length in zip(self.counts, lengths, strict=True)
        ]

    @contextlib.contextmanager
    def _clock(self, phase: str) -> Iterator[None]:
        """Adds the time spent inside to a phase, and what of it was compilation to `compile` instead."""
        programs = self._phases.programs
        start, compiled = time.perf_counter(), programs.compile_time
        yield
        compiled = programs.compile_time - compiled
        self.timings.compile += compiled
        spent = time.perf_counter() - start - compiled
        setattr(self.timings, phase, getattr(self.timings, phase) + spent)
