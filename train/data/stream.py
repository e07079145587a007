"""From a mixture of data sets to batches of packed rows, with whatever cannot be trained on skipped and counted."""

import collections
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grain
import numpy as np

from train.data.mixture import mix
from train.data.packing import RowShape, pack
from train.data.records import BadSample, Record
from train.data.store import decoded, read_shards
from vila_jax.errors import DataError

log = logging.getLogger("train.data")

MIN_SEEN = 200
"""Samples before their bad ones are judged as a share."""


class SkipBad(grain.IterDataset):
    """The good ones among samples and `BadSample`s; the others are counted by reason and logged with their ids.

    The counts are part of the iterator's state, so that a resumed run reports what an uninterrupted one does.

    Args:
      samples: what is read.
      max_share: the largest share of bad samples; more raise `DataError`.
    """

    def __init__(self, samples: grain.IterDataset, max_share: float = 1.0):
        super().__init__(samples)
        self._samples, self._max_share = samples, max_share

    def __iter__(self) -> "SkipBadIterator":
        return SkipBadIterator(iter(self._samples), self._max_share)


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
        if self.seen >= MIN_SEEN and share > self._max_share:
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
    records: grain.MapDataset[Any], layout: Callable[[Record], Any], *, threads: int = 8, max_bad_share: float = 1.0
) -> SkipBad:
    """Laid-out samples of records, as features for `pack`.

    Args:
      records: encoded, or as they are.
      layout: what lays a record out; its `BadSample`s are skipped.
      threads: that read and lay out ahead.
      max_bad_share: see `SkipBad`.
    """

    def lay_out(record: bytes | Record) -> dict[str, np.ndarray] | BadSample:
        try:
            whole = decoded(record) if isinstance(record, bytes) else record
            if isinstance(whole, BadSample):
                return whole
            return layout(whole).features()
        except BadSample as error:
            return error

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return SkipBad(records.map(lay_out).to_iter_dataset(options), max_bad_share)


def batches(
    mixture: str,
    folders: Mapping[str, Path],
    layout: Callable[[Record], Any],
    shape: RowShape,
    tokens_per_tile: int,
    rows: int,
    *,
    total: int | None = None,
    seed: int = 0,
    host: int = 0,
    hosts: int = 1,
    max_bad_share: float = 1.0,
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of packed rows of this host.

    Args:
      mixture: see `train.data.mixture`.
      folders: of the prepared data sets, by name.
      rows: of a batch on this host; what is left of the last one is dropped.
      total: records that all hosts see; None for one round of the mixture.
      See `samples` and `pack` for the others.
    """
    sets = {name: read_shards(folder) for name, folder in folders.items()}
    records = mix(mixture, sets, total=total, seed=seed, host=host, hosts=hosts)
    laid = samples(records, layout, max_bad_share=max_bad_share)
    return iter(pack(laid, shape, tokens_per_tile, seed=seed).batch(rows, drop_remainder=True))
