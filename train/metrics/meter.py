"""Collects what steps tell, without stopping the device for it, and turns it into rows.

    dispatched   1 2 3 4 5 6 …        the host is `lag` steps ahead: the device always has the next step waiting
    fetched          1 2 3 4 …        a step's numbers are fetched when `lag` more were dispatched

Fetching waits until that older step is done, which also keeps the host from running away from the device. The time from
one step's end to the next one's is what the step took. Where the host did something else meanwhile (compiled, saved),
the steps concerned are not timed, so that neither rates nor the time left know of it.
"""

import collections
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

import jax
import numpy as np

from train.metrics.counts import Counts
from train.metrics.machine import memory_in_use
from train.metrics.rows import Row, Writer
from vila_jax.errors import TrainingDiverged

_COMPILED = "/jax/core/compile/backend_compile_duration"
_RECENT = 200
"""Steps that the time left is estimated from."""


@dataclasses.dataclass
class _Step:
    """A step that was dispatched, or fetched."""

    number: int
    metrics: Mapping[str, jax.Array]
    counts: Counts
    waited: float
    bad: Mapping[str, int]
    timed: bool = True
    seconds: float | None = None
    targets: float = 0


class Meter:
    """The metrics of a run.

    The rows that it writes have, for every `every`-th step and the last:

        loss, accuracy, targets, grad_norm, grad_norm/GROUP, skipped, skipped_in_a_row     of the step, see `update`
        learning_rate/GROUP                                                                of the step
        bad/REASON                                    samples left out until the step
        fill/tokens, fill/tiles                       share of the rows' slots that are used
        tokens_per_second, samples_per_second, tiles_per_second, targets_per_second
        step_seconds                                  median
        data_wait                                     share of the time in which the host waited for a batch
        mfu                                           FLOPs that the steps need, of those that the devices could do
        memory/device, memory/device_peak             bytes, of the fullest device of this host, where it tells
        memory/host                                   bytes of this process
        compile_seconds                               so far, in this process

    Fill and rates are of all steps since the last row; no rates while no step was timed. Counts of other hosts are
    taken to be like those of this one.

    Args:
      writers: where rows go; none on hosts but the first.
      steps: of the whole run.
      every: steps from one row to the next.
      max_skipped: so many skipped steps in a row are the end; None for no such end.
      learning_rates: of every group at a step, counted from 1.
      bad: samples left out so far, by reason.
      flops: that a batch of one host needs, see `train/flops.py`.
      peak: FLOP/s of all devices of the run, see `vila_jax.bench.machine`.
      hosts: that the run has.
      lag: steps that the host is ahead of what it fetches.
      clock: seconds.
    """

    def __init__(
        self,
        writers: Sequence[Writer],
        *,
        steps: int,
        every: int = 10,
        max_skipped: int | None = None,
        learning_rates: Callable[[int], Mapping[str, float]] | None = None,
        bad: Callable[[], Mapping[str, int]] | None = None,
        flops: Callable[[Counts], float] | None = None,
        peak: float | None = None,
        hosts: int = 1,
        lag: int = 2,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.compile_seconds = 0.0
        self._writers, self._steps, self._every, self._max_skipped = tuple(writers), steps, every, max_skipped
        self._learning_rates, self._bad = learning_rates or (lambda step: {}), bad or dict
        self._flops, self._peak, self._hosts, self._lag, self._clock = flops, peak, hosts, lag, clock
        self._pending: collections.deque[_Step] = collections.deque()
        self._window: list[_Step] = []  # fetched since the last row
        self._recent: collections.deque[float] = collections.deque(maxlen=_RECENT)
        self._fetched_at: float | None = None
        self._compiled = self._closed = False
        self._last: tuple[int, dict[str, float]] | None = None
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()

    def step(self, step: int, device_metrics: Mapping[str, jax.Array], counts: Counts, wait_seconds: float) -> None:
        """A step was dispatched. Waits for the step `lag` before it.

        Args:
          step: its number, from 1.
          device_metrics: what `train.update.update` says of it, still being computed.
          counts: of its batch.
          wait_seconds: that the host waited for the batch.

        Raises:
          TrainingDiverged: too many steps in a row were skipped.
        """
        if self._compiled:
            self.interrupted()
            self._compiled = False
        for value in device_metrics.values():
            value.copy_to_host_async()
        self._pending.append(_Step(step, device_metrics, counts, wait_seconds, self._bad()))
        while len(self._pending) > self._lag:
            self._fetch()

    def interrupted(self) -> None:
        """Something else than steps took the time until now, such as a checkpoint: it is no part of any step's."""
        for step in self._pending:
            step.timed = False

    def note(self, step: int, text: str) -> None:
        """Tells that something happened at a step."""
        for writer in self._writers:
            writer.note(step, text)

    @property
    def latest(self) -> dict[str, float]:
        """What the newest step that was fetched says of itself."""
        return {} if self._last is None else self._last[1]

    def flush(self) -> None:
        """Waits for all steps that were dispatched.

        Raises:
          TrainingDiverged: too many steps in a row were skipped.
        """
        while self._pending:
            self._fetch()

    def close(self) -> None:
        """Waits for all steps, writes the row of the last one, and closes the writers; may be called twice."""
        if self._closed:
            return
        self._closed = True
        self._max_skipped = None  # an end is no place for another one
        try:
            self.flush()
            if self._window and self._last is not None:
                self._write(*self._last)
        finally:
            jax.monitoring.unregister_event_duration_listener(self._listen)
            for writer in self._writers:
                writer.close()

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILED:
            self._compiled = True
            self.compile_seconds += duration_secs

    def _fetch(self) -> None:
        """The oldest step that was not fetched yet."""
        step = self._pending.popleft()
        values = {name: np.asarray(value).item() for name, value in step.metrics.items()}
        step.metrics, step.targets = {}, values.get("targets", 0)
        now = self._clock()
        if step.timed and self._fetched_at is not None:
            step.seconds = now - self._fetched_at
            self._recent.append(step.seconds)
        self._fetched_at = now
        self._window.append(step)
        self._last = step.number, values
        left = (self._steps - step.number) * statistics.fmean(self._recent) if self._recent else None
        for writer in self._writers:
            writer.advance(step.number, left)
        if step.number % self._every == 0 or step.number == self._steps:
            self._write(step.number, values)
        self._judge(step.number, values)

    def _judge(self, step: int, values: Mapping[str, float]) -> None:
        in_a_row = values.get("skipped_in_a_row", 0)
        if not in_a_row:
            return
        what = f"loss {values['loss']:.4g}, gradient norm {values['grad_norm']:.4g}"
        self.note(step, f"skipped: {what}")
        if self._max_skipped is not None and in_a_row >= self._max_skipped:
            raise TrainingDiverged(
                f"{in_a_row} steps in a row were skipped; the last one had {what}",
                where=f"step {step}",
                fix="Go on from a checkpoint before them with a lower learning rate, a clip, or other data.",
            )

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        row = Row(step, dict(values) | self._told(step) | self._rates() | memory_in_use())
        self._window = []
        for writer in self._writers:
            writer.write(row)

    def _told(self, step: int) -> dict[str, float]:
        """What needs no clock."""
        window = [own.counts for own in self._window]
        filled = {
            "fill/tokens": (sum(c.tokens for c in window), sum(c.token_slots for c in window)),
            "fill/tiles": (sum(c.tiles for c in window), sum(c.tile_slots for c in window)),
        }
        return (
            {f"learning_rate/{group}": rate for group, rate in self._learning_rates(step).items()}
            | {f"bad/{reason}": number for reason, number in self._window[-1].bad.items()}
            | {name: used / there for name, (used, there) in filled.items() if there}
            | {"compile_seconds": self.compile_seconds}
        )

    def _rates(self) -> dict[str, float]:
        """What needs one."""
        timed = [(step, step.seconds) for step in self._window if step.seconds is not None]
        seconds = math.fsum(own for _, own in timed)
        if seconds <= 0:
            return {}
        counts = [step.counts for step, _ in timed]
        totals = {
            "tokens_per_second": sum(c.tokens for c in counts),
            "samples_per_second": sum(c.samples for c in counts),
            "tiles_per_second": sum(c.tiles for c in counts),
        }
        rates = {name: self._hosts * total / seconds for name, total in totals.items()}
        rates["targets_per_second"] = sum(step.targets for step, _ in timed) / seconds  # of all hosts already
        rates["step_seconds"] = statistics.median(own for _, own in timed)
        rates["data_wait"] = min(1.0, sum(step.waited for step, _ in timed) / seconds)
        if self._flops is not None and self._peak is not None:
            rates["mfu"] = self._hosts * sum(map(self._flops, counts)) / (seconds * self._peak)
        return rates
