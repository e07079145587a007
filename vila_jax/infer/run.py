"""One batch on its way: prefill, then chunks of decode steps."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jaxtyping import Array, Bool, Int

from vila_jax.infer.counts import Counts
from vila_jax.infer.decode import Progress
from vila_jax.infer.decoder_plan import Schedule, SparseSchedule
from vila_jax.infer.layout import Layout
from vila_jax.infer.phases import Phases
from vila_jax.infer.prefill import Before
from vila_jax.infer.sampler import Sampler, SamplingOptions
from vila_jax.infer.vision import VisualTokens

OnEnd = Callable[[Progress, Bool[Array, " V"] | None, list[list[int]]], None]
"""Takes what a run leaves: where it stands, which visual tokens are used, and all new tokens of the real rows."""


@dataclasses.dataclass
class Timings:
    """Seconds of wall time; each belongs to one of them, and counts as `compile` while a program was waited for.

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
      before: what was read before of the one row, of which `layout` is the rest.
      on_end: called once, when the run is over or given up.

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
        *,
        before: Before | None = None,
        on_end: OnEnd | None = None,
    ):
        self.counts: list[Counts] = layout.counts
        self.timings = Timings()
        self._phases, self._layout, self._before, self._on_end = phases, layout, before, on_end
        self._stopped: set[int] = set()
        filler = len(layout.prompts.token_ids) - len(sampling)
        self._sampler = Sampler.of([*sampling, *[SamplingOptions()] * filler])
        self._limit = np.asarray([new_tokens] * len(sampling) + [0] * filler, np.int32)
        self._ends = np.asarray(end_tokens or [-1], np.int32)
        self._chunks = self._generate()

    def __iter__(self) -> Iterator[Chunk]:
        return self._chunks

    def compile(self, *, wait: bool = True) -> None:
        """Compiles all programs of the batch ahead of it: runs nothing, and waits for no weights.

        Args:
          wait: False leaves it to a thread; each step of the batch then waits for its own program alone.
        """
        if wait:
            start = time.perf_counter()
            self._rehearse()
            self.timings.compile += time.perf_counter() - start
        else:
            thread = ThreadPoolExecutor(1, thread_name_prefix="rehearsal")
            thread.submit(self._rehearse)  # what goes wrong there goes wrong again for whoever needs the program
            thread.shutdown(wait=False)

    def _rehearse(self) -> None:
        with self._phases.rehearsal() as phases:
            _, progress = self._read(phases)
            if max(self._limit) > 1:
                arrays = self._stopped_rows(), self._sampler, self._ends, self._layout.schedule
                phases.compile_decode(progress, *arrays)

    def close(self) -> None:
        """Gives the batch up, if it is not over."""
        self._chunks.close()

    def stop(self, row: int) -> None:
        """Ends a row; the others go on."""
        self._stopped.add(row)

    def _generate(self) -> Generator[Chunk, None, None]:
        yield from self._steps(self._layout.schedule, *self._prefill())

    def _prefill(self) -> tuple[Progress, Bool[Array, " V"] | None]:
        """Where the rows stand behind their prompts, and which visual tokens are used."""
        with self._clock("prefill"):
            visual, progress = jax.block_until_ready(self._read(self._phases))
        self._before = None  # nothing here keeps its memory any longer
        self._settle_counts(np.asarray(progress.lengths)[: len(self.counts)])
        return progress, None if visual is None else visual.valid

    def _read(self, phases: Phases) -> tuple[VisualTokens | None, Progress]:
        visual = phases.visual_tokens(self._layout.tiles)
        arrays = visual, self._sampler, self._limit, self._ends, self._before
        return visual, phases.prefill(self._layout, *arrays)

    def _steps(
        self, schedule: Schedule | SparseSchedule | None, progress: Progress | None, valid: Bool[Array, " V"] | None
    ) -> Generator[Chunk, None, None]:
        """The first token of every row, then chunk by chunk the others."""
        assert progress is not None
        phases, done = self._phases, np.asarray(progress.done)
        known = chunk = [[int(token)] for token in np.asarray(progress.token)[: len(self.counts)]]
        try:
            if not done.all():  # compiled before the first token is handed out, lest a stream stall after it
                with self._clock("decode"):
                    phases.compile_decode(progress, self._stopped_rows(), self._sampler, self._ends, schedule)
            yield Chunk(chunk, done[: len(chunk)].tolist())
            while not (done | self._stopped_rows()).all():
                given, progress = progress, None  # its memory is taken over
                with self._clock("decode"):
                    result = phases.decode(given, self._stopped_rows(), self._sampler, self._ends, schedule)
                    progress, tokens = jax.block_until_ready(result)
                done = np.asarray(progress.done)
                chunk = [row[row >= 0].tolist() for row in np.asarray(tokens)[: len(chunk)]]
                known = [[*old, *new] for old, new in zip(known, chunk, strict=True)]
                yield Chunk(chunk, done[: len(chunk)].tolist())
        finally:
            if progress is not None and self._on_end is not None:
                self._on_end(progress, valid, known)

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
