"""From a mixture of data sets to batches of packed rows, with whatever cannot be trained on skipped and counted.

    records -> samples -> rows -> batches       one such stream for every budget of the stage, over its own records
                                  Batches       draws a budget for every step, and makes batches ahead

Everything but the threads that read is in one thread, behind which stands a queue. What is handed out has the position
behind it with it, so that a run goes on exactly behind the last batch that it has seen, whatever lay in the queue.
"""

import collections
import logging
import queue
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from train.data.mixture import Rounds
from train.data.packing import Axis, pack
from train.data.records import BadSample, Record
from train.data.samples import Layout
from train.data.store import decoded
from train.recipe import Stage
from vila_jax.errors import ConfigError, DataError

log = logging.getLogger("train.data")

MIN_SEEN = 200
"""Samples before their bad ones are judged as a share."""


class SkipBad(grain.IterDataset):
    """The good ones among samples and `BadSample`s; the others are counted by reason and logged with their ids.

    The counts are part of the iterator's state, so that a resumed run reports what an uninterrupted one does.

    Args:
      samples: what is read.
      max_share: the largest share of bad samples; more raise `DataError`.

    Attributes:
      iterator: the newest, which has the counts.
    """

    def __init__(self, samples: grain.IterDataset, max_share: float = 1.0):
        super().__init__(samples)
        self._samples, self._max_share = samples, max_share

    def __iter__(self) -> "SkipBadIterator":
        self.iterator = SkipBadIterator(iter(self._samples), self._max_share)
        return self.iterator


class SkipBadIterator(grain.DatasetIterator):
    """See `SkipBad`."""

    def __init__(self, samples: grain.DatasetIterator, max_share: float):
        super().__init__(samples)
        self._samples, self._max_share = samples, max_share
        self.seen, self.bad = 0, collections.Counter[str]()

    def __next__(self) -> Any:
        while True:
            sample = next(self._samples)
            self.seen += 1
            if not isinstance(sample, BadSample):
                return sample
            self.bad[sample.reason] += 1
            log.warning("skipped (%s): %s", sample.reason, sample)
            self._check()

    def _check(self) -> None:
        share = self.bad.total() / self.seen
        if self.seen >= MIN_SEEN and (share > self._max_share or share == 1):
            reasons = ", ".join(f"{n} x {reason}" for reason, n in self.bad.most_common())
            raise DataError(
                f"{share:.1%} of {self.seen} samples are bad, and at most {self._max_share:.1%} may be: {reasons}",
                where="data",
                fix="Mend the data set, or raise `max_bad_share`.",
            )

    def get_state(self) -> dict[str, Any]:
        return {"samples": self._samples.get_state(), "seen": self.seen, "bad": dict(self.bad)}

    def set_state(self, state: dict[str, Any]) -> None:
        self._samples.set_state(state["samples"])
        self.seen, self.bad = state["seen"], collections.Counter(state["bad"])


def samples(
    records: grain.MapDataset[Any],
    layout: Callable[[Record, int], Any],
    *,
    threads: int = 8,
    max_bad_share: float = 1.0,
    salt: tuple[int, ...] = (0,),
) -> SkipBad:
    """Laid-out samples of records, as features for `pack`.

    Args:
      records: encoded, or as they are.
      layout: what lays a record out, given a number of its own to draw with; its `BadSample`s are skipped.
      threads: that read and lay out ahead.
      max_bad_share: see `SkipBad`.
      salt: what the numbers depend on, beside the place in `records`.
    """

    def lay_out(index: int, record: bytes | Record) -> dict[str, np.ndarray] | BadSample:
        try:
            whole = decoded(record) if isinstance(record, bytes) else record
            if isinstance(whole, BadSample):
                return whole
            number = zlib.crc32(np.array([*salt, index], np.int64).tobytes())
            return layout(whole, number).features()
        except BadSample as error:
            return error

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return SkipBad(records.map_with_index(lay_out).to_iter_dataset(options), max_bad_share)


class _Stream(NamedTuple):
    """The batches of one budget, and the samples that they are made of."""

    batches: grain.DatasetIterator
    samples: SkipBadIterator


def _open_stream(
    stage: Stage,
    layout: Layout,
    sources: Mapping[str, grain.MapDataset],
    rows: int,
    share: tuple[int, int],
) -> _Stream:
    """Opens one of `share[1]` equal parts of the mixture's records, the one with the number `share[0]`."""
    data = stage.data
    records = Rounds(data.mixture, sources, seed=data.seed, host=share[0], hosts=share[1])
    salt = (stage.seed, *share)
    laid = samples(records, layout, threads=data.threads, max_bad_share=data.max_bad_share, salt=salt)
    unit = Axis.PICTURES if layout.visual.by_picture else Axis.TILES
    packed = pack(laid, layout.shape, layout.visual.tokens_per_unit, unit=unit, axes=layout.axes, seed=data.seed)
    batches = iter(packed.batch(rows, drop_remainder=True))
    return _Stream(batches, laid.iterator)


class _Made(NamedTuple):
    """A batch with the position behind it."""

    budget: int
    batch: dict[str, np.ndarray]
    state: dict[str, Any]


class Batches(Iterator[tuple[int, dict[str, np.ndarray]]]):
    """Batches of packed rows without an end, each for one of the budgets: `(number of the budget, batch)`.

    The budget of a step depends on the seed and the step alone, and so is the same on all hosts.

    Args:
      streams: of the budgets.
      seed: of the budgets that are drawn.
      prefetch: batches that are made ahead.
    """

    def __init__(self, streams: Sequence[_Stream], *, seed: int, prefetch: int):
        self._streams, self._seed, self._prefetch = streams, seed, max(prefetch, 1)
        self._state = self._position(0)
        self._maker: _Maker | None = None

    def __next__(self) -> tuple[int, dict[str, np.ndarray]]:
        if self._maker is None:
            self._maker = _Maker(self._made(self._state["step"]), self._prefetch)
        made = self._maker.take()
        self._state = made.state
        return made.budget, made.batch

    def get_state(self) -> dict[str, Any]:
        """The position behind the last batch that was handed out; JSON can hold it."""
        return self._state

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on behind the batch after which `get_state` was asked.

        Raises:
          ConfigError: the state is one of another number of budgets.
        """
        if len(state["streams"]) != len(self._streams):
            raise ConfigError(
                f"the run has {len(state['streams'])} budgets so far, and {len(self._streams)} now",
                where="budgets",
                fix="Resume it with the budgets that it was begun with.",
            )
        self.close()
        for stream, own in zip(self._streams, state["streams"], strict=True):
            stream.batches.set_state(own)
        self._state = state

    def close(self) -> None:
        """Ends the thread; the next batch begins another, behind the last one that was handed out."""
        if self._maker is not None:
            self._maker.close()
            self._maker = None
            for stream, own in zip(self._streams, self._state["streams"], strict=True):
                stream.batches.set_state(own)

    @property
    def seen(self) -> int:
        """Samples that were read so far on this host, bad ones included."""
        return self._state["seen"]

    @property
    def bad(self) -> collections.Counter[str]:
        """Samples among them that were left out, by reason."""
        return collections.Counter(self._state["bad"])

    def _made(self, step: int) -> Iterator[_Made]:
        while True:
            budget = drawn_budget(self._seed, step, len(self._streams))
            batch = next(self._streams[budget].batches)
            step += 1
            yield _Made(budget, batch, self._position(step))

    def _position(self, step: int) -> dict[str, Any]:
        bad = sum((stream.samples.bad for stream in self._streams), collections.Counter[str]())
        return {
            "step": step,
            "streams": [stream.batches.get_state() for stream in self._streams],
            "seen": sum(stream.samples.seen for stream in self._streams),
            "bad": dict(bad),
        }


class _Maker:
    """A thread that takes from an iterator ahead of its user."""

    def __init__(self, made: Iterator[_Made], ahead: int):
        self._made = made
        self._queue: queue.Queue[_Made | BaseException] = queue.Queue(ahead)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    def take(self) -> _Made:
        """The next one; raises what making it raised."""
        taken = self._queue.get()
        if isinstance(taken, BaseException):
            self._put(taken)  # for whoever asks again
            raise taken
        return taken

    def close(self) -> None:
        """Ends the thread, which may still finish what it is at."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            for made in self._made:
                if not self._put(made):
                    return
        except BaseException as error:  # raised again where batches are taken
            self._put(error)

    def _put(self, item: _Made | BaseException) -> bool:
        """Waits for room; False where the user has gone."""
        while not self._ended.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False


def drawn_budget(seed: int, step: int, budgets: int) -> int:
    """The number of the budget of a step."""
    return 0 if budgets == 1 else int(np.random.default_rng((seed, step)).integers(budgets))


def open_batches(
    stage: Stage,
    layouts: Sequence[Layout],
    sources: Mapping[str, grain.MapDataset],
    *,
    host: int = 0,
    hosts: int = 1,
) -> Batches:
    """Opens this host's batches of a stage.

    Args:
      layouts: one for each budget, see `train.data.samples.make_layouts`.
      sources: the data sets of the mixture by name: records, encoded or not.
      host, hosts: this host's share of the records and of the rows.

    Raises:
      ConfigError: the mixture is malformed or names an unknown set, or the rows cannot be shared among the hosts.
    """
    if stage.rows.rows % hosts:
        raise ConfigError(
            f"{stage.rows.rows} rows cannot be shared among {hosts} hosts",
            where="rows",
            fix=f"Choose a multiple of {hosts} rows.",
        )
    shares = len(layouts) * hosts
    streams = [
        _open_stream(stage, layout, sources, stage.rows.rows // hosts, (number * hosts + host, shares))
        for number, layout in enumerate(layouts)
    ]
    return Batches(streams, seed=stage.seed, prefetch=stage.data.prefetch)


def estimate_steps(
    stage: Stage, layouts: Sequence[Layout], sources: Mapping[str, grain.MapDataset], *, seen: int = 400
) -> int:
    """Steps in which a stage sees every record of the mixture once, give or take: some hundred are laid out.

    The same on every host.

    Args:
      layouts, sources: see `open_batches`.
      seen: records that are laid out for each budget.
    """
    records_of_a_row = [_records_of_a_row(stage, layout, sources, seen) for layout in layouts]
    whole = Rounds(stage.data.mixture, sources, seed=stage.data.seed).round
    return max(1, round(whole / (stage.rows.rows * float(np.mean(records_of_a_row)))))


def _records_of_a_row(stage: Stage, layout: Layout, sources: Mapping[str, grain.MapDataset], seen: int) -> float:
    """Records that a row takes on average, bad ones included."""
    stream, rows, held = _open_stream(stage, layout, sources, 1, (0, 1)), 0, 0
    while held < seen:
        row = next(stream.batches)
        rows += 1
        held += int(np.sum((row["positions"] == 0) & (np.arange(layout.shape.tokens) < row["used"][:, :1])))
    found = stream.samples
    return held / rows * found.seen / (found.seen - found.bad.total())
