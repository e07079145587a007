"""From a mixture of data sets to batches of packed rows, with whatever cannot be trained on skipped and counted.

    records -> samples -> rows -> batches       one such stream for every budget of the stage, over its own records
                                  Batches       draws a budget for every step, and makes batches ahead

Everything but the threads that read is in one thread, behind which stands a queue. What is handed out has the position
behind it with it, so that a run goes on exactly behind the last batch that it has seen, whatever lay in the queue.
"""

import collections
import logging
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from grain.experimental import ThreadPrefetchDatasetIterator

from train.data.mixture import Rounds
from train.data.packing import Axis, pack
from train.data.records import BadSample, Record
from train.data.samples import Layout
from train.data.store import decoded
from train.recipe import Stage
from vila_jax.errors import CheckpointError, ConfigError, DataError

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


class _Stream:
    """The batches of one budget, and what was read for those that it has given.

    Args:
      batches: packed rows.
      samples: that they are made of; right behind a restored position it has yet to read again what waits in rows that
        are not full, so that its counts are behind those of the batches.
    """

    def __init__(self, batches: grain.DatasetIterator, samples: SkipBadIterator):
        self._batches, self._samples = batches, samples
        self._counts: dict[str, Any] = {"seen": 0, "bad": {}}

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._batches)
        self._counts = {"seen": self._samples.seen, "bad": dict(self._samples.bad)}
        return batch

    def get_state(self) -> dict[str, Any]:
        return {"batches": self._batches.get_state(), **self._counts}

    def set_state(self, state: dict[str, Any]) -> None:
        self._batches.set_state(state["batches"])
        self._counts = {"seen": state["seen"], "bad": state["bad"]}


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


class _Drawn:
    """Batches of all budgets in their order, which depends on the seed and the step alone: the same on all hosts."""

    def __init__(self, streams: Sequence[_Stream], seed: int):
        self._streams, self._seed, self._step = streams, seed, 0

    def __iter__(self) -> "_Drawn":
        return self

    def __next__(self) -> tuple[int, dict[str, np.ndarray]]:
        budget = drawn_budget(self._seed, self._step, len(self._streams))
        batch = next(self._streams[budget])
        self._step += 1
        return budget, batch

    def get_state(self) -> dict[str, Any]:
        return {"step": self._step, "streams": [stream.get_state() for stream in self._streams]}

    def set_state(self, state: dict[str, Any]) -> None:
        self._step = state["step"]
        for stream, own in zip(self._streams, state["streams"], strict=True):
            stream.set_state(own)


class Batches(Iterator[tuple[int, dict[str, np.ndarray]]]):
    """Batches of packed rows without an end, each for one of the budgets: `(number of the budget, batch)`.

    Args:
      streams: of the budgets.
      seed: of the budgets that are drawn.
      prefetch: batches that are made ahead, on a thread; 0 for no thread.
    """

    def __init__(self, streams: Sequence[_Stream], *, seed: int, prefetch: int):
        self._budgets = len(streams)
        self._ahead = ThreadPrefetchDatasetIterator(_Drawn(streams, seed), prefetch)

    def __next__(self) -> tuple[int, dict[str, np.ndarray]]:
        return next(self._ahead)

    def get_state(self) -> dict[str, Any]:
        """The position behind the last batch that was handed out; JSON can hold it."""
        return self._ahead.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on behind the batch after which `get_state` was asked.

        Raises:
          ConfigError: the state is one of another number of budgets.
          CheckpointError: it is no such state.
        """
        try:
            if len(state["streams"]) == self._budgets:
                self._ahead.set_state(state)
                return
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CheckpointError(
                f"the position does not fit the data ({type(error).__name__}: {error})",
                where="position",
                fix="Data sets must not change while a run is unfinished; put back those that it began with.",
            ) from error
        raise ConfigError(
            f"the run has {len(state['streams'])} budgets so far, and {self._budgets} now",
            where="budgets",
            fix="Resume it with the budgets that it was begun with.",
        )

    def close(self) -> None:
        """Ends the thread, which may still finish the batch that it is at; none can be asked for any more."""
        self._ahead.close()

    @property
    def seen(self) -> int:
        """Samples that were read for the batches handed out so far on this host, bad ones included."""
        return sum(stream["seen"] for stream in self.get_state()["streams"])

    @property
    def bad(self) -> collections.Counter[str]:
        """Samples among them that were left out, by reason."""
        counts = (collections.Counter(stream["bad"]) for stream in self.get_state()["streams"])
        return sum(counts, collections.Counter[str]())


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
        row = next(stream)
        rows += 1
        held += int(np.sum((row["positions"] == 0) & (np.arange(layout.shape.tokens) < row["used"][:, :1])))
    counts = stream.get_state()
    return held / rows * counts["seen"] / (counts["seen"] - sum(counts["bad"].values()))
