"""Records in ArrayRecord shards: any record can be read by its number, which is what shuffling at scale needs.

    FOLDER/part-00000.array_record …     records as `train.data.records.encode` writes them
    FOLDER/index.json                    how many there are, where they come from, and what was left out

The index is written last: a folder without one is unfinished, and is refused.
"""

import collections
import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grain
from array_record.python.array_record_module import ArrayRecordWriter

from train.data.records import BadSample, Picture, Record, decode, encode
from vila_jax.errors import ConfigError, ImageError, ImageSizeError
from vila_jax.vision.open import MAX_BYTES, open_image

INDEX = "index.json"
SHARD_BYTES = 512 * 2**20
_LISTED = 1000  # bad samples that the index names


@dataclasses.dataclass
class Report:
    """What became of a data set.

    Attributes:
      bad: for every reason, how many samples were left out.
      named: the first of them, one message each.
      bytes: of the shards.
    """

    records: int = 0
    pictures: int = 0
    bytes: int = 0
    bad: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    named: list[str] = dataclasses.field(default_factory=list)

    def add_bad(self, error: BadSample) -> None:
        """Counts a sample that was left out."""
        self.bad[error.reason] += 1
        if len(self.named) < _LISTED:
            self.named.append(f"{error.reason}: {error}")


def write_shards(
    records: Iterable[Record | BadSample], folder: Path, *, source: str, shard_bytes: int = SHARD_BYTES
) -> Report:
    """Writes a data set with the bytes of its pictures, each of which is decoded once.

    Args:
      records: of a reader.
      folder: new, or left unfinished by an earlier run.
      source: where they come from, for the index.
      shard_bytes: a shard ends when it is longer.

    Raises:
      ConfigError: the folder holds a finished data set, or no record is left.
    """
    if (folder / INDEX).exists():
        raise ConfigError("it holds a data set already", where=str(folder), fix="Choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("part-*.array_record"):
        old.unlink()
    report, shards = Report(), _Shards(folder, shard_bytes)
    for record in records:
        try:
            if isinstance(record, BadSample):
                raise record
            whole = with_bytes(record)
        except BadSample as error:
            report.add_bad(error)
            continue
        shards.write(encode(whole))
        report.records += 1
        report.pictures += len(whole.pictures)
    report.bytes = shards.close()
    if not report.records:
        first = report.named[0] if report.named else "the source is empty"
        raise ConfigError(f"no record is left: {first}", where=source, fix="Check the paths of data and pictures.")
    facts = {"format": 1, "source": source, **vars(report), "shards": shards.counts}
    partial = folder / (INDEX + ".partial")
    partial.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, folder / INDEX)
    return report


class _Shards:
    """Writes shard after shard."""

    def __init__(self, folder: Path, shard_bytes: int):
        self._folder, self._limit = folder, shard_bytes
        self._writer: Any = None
        self._size = self._total = 0
        self.counts: dict[str, int] = {}

    def write(self, data: bytes) -> None:
        if self._writer is None or self._size > self._limit:
            self._finish()
            name = f"part-{len(self.counts):05d}.array_record"
            self._writer, self._size = ArrayRecordWriter(str(self._folder / name), "group_size:1"), 0
            self.counts[name] = 0
        self._writer.write(data)
        self._size += len(data)
        self.counts[next(reversed(self.counts))] += 1

    def close(self) -> int:
        """Ends the last shard, and returns the bytes of all."""
        self._finish()
        return self._total

    def _finish(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._total += (self._folder / next(reversed(self.counts))).stat().st_size
            self._writer = None


def read_shards(folder: Path) -> grain.MapDataset[bytes]:
    """The records of a folder, still encoded, by number.

    Raises:
      ConfigError: the folder holds no finished data set, or a shard is missing, empty or of another length.
    """
    try:
        counts: dict[str, int] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["shards"]
    except (OSError, ValueError, KeyError) as error:
        fix = "Make it with `python -m train prepare`; an unfinished run is started again by the same command."
        raise ConfigError(f"no finished data set: {error}", where=str(folder), fix=fix) from error
    for name, count in counts.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size == 0:
            raise ConfigError("the shard is missing or empty", where=str(path), fix="Prepare the data set again.")
        found = len(grain.sources.ArrayRecordDataSource([str(path)]))
        if found != count:
            raise ConfigError(f"{found} records, but the index says {count}", where=str(path), fix="Prepare it again.")
    return grain.MapDataset.source(grain.sources.ArrayRecordDataSource([str(folder / name) for name in counts]))


def decoded(data: bytes) -> Record | BadSample:
    """The record, or what is wrong with it."""
    try:
        return decode(data)
    except BadSample as error:
        return error


def with_bytes(record: Record) -> Record:
    """The record with the bytes of its pictures, all of which can be decoded.

    Raises:
      BadSample: one cannot.
    """
    return dataclasses.replace(record, pictures=tuple(_read(picture, record.id) for picture in record.pictures))


def _read(picture: Picture, where: str) -> bytes:
    open_picture(picture, where)
    return Path(picture).read_bytes() if isinstance(picture, str) else picture


def open_picture(picture: Picture, where: str) -> Any:
    """The decoded picture.

    Raises:
      BadSample: the file is missing, damaged or too large.
    """
    if isinstance(picture, str) and not Path(picture).is_file():
        raise BadSample("missing picture", f"there is no file {picture!r}", where)
    try:
        return open_image(picture, max_bytes=MAX_BYTES)
    except ImageSizeError as error:
        raise BadSample("huge picture", error.what, where) from error
    except ImageError as error:
        raise BadSample("corrupt picture", error.what, where) from error
