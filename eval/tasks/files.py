"""Files of benchmarks: JSON as the authors publish it, and rows as the Hub serves them."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vila_jax.errors import ConfigError, VilaError

Row = dict[str, Any]
"""One question by the names of the Hub's columns."""

ON_HUB = "https://huggingface.co/datasets/lmms-lab-encoder"
"""Where lmms_eval keeps its copies of the benchmarks."""

_AT_ONCE = 64  # rows of a parquet file that are held, with their pictures


class BadRow(VilaError):
    """A row that cannot be asked."""


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """A question that cannot be asked. It stays in the number of those expected.

    Attributes:
      id: of the question, or the file and line that it should stand in.
      why: one sentence.
    """

    id: str
    why: str


@dataclasses.dataclass(frozen=True)
class File:
    """A picture below a folder, under the first of some names that is there."""

    folder: Path
    names: tuple[str, ...]


def missing(folder: Path, names: Sequence[str], published: str) -> ConfigError:
    """The error that none of these files is there."""
    what = f"there is no {' or '.join(names)}"
    return ConfigError(what, where=str(folder), fix=f"It is published at {published}.")


def find(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of some files that is there; a name may be a pattern."""
    return next((path for name in names for path in sorted(folder.glob(name)) if path.exists()), None)


def need(folder: Path, names: Sequence[str], published: str) -> Path:
    """The same.

    Raises:
      ConfigError: none is there.
    """
    path = find(folder, names)
    if path is None:
        raise missing(folder, names, published)
    return path


def load_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
      ConfigError: it is none.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"this is no JSON: {error}", where=str(path), fix="Download the file again.") from None


def json_lines(path: Path) -> Iterator[Row | Unreadable]:
    """The objects of a file with one in each line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                yield Unreadable(f"{path.name} line {number}", f"it is no JSON: {error}")
                continue
            yield row if isinstance(row, dict) else Unreadable(f"{path.name} line {number}", "it is no object")


def hub_rows(folder: Path, splits: Sequence[str], local: Sequence[str], published: str) -> Iterator[Row | Unreadable]:
    """Rows of a data set as downloaded from the Hub: parquet files, or JSON lines with pictures beside them.

    Args:
      splits: beginnings of the files' names, each perhaps behind that of a configuration: `en/dev`, `dev`.
      local: names of the authors' files, which would do as well.

    Raises:
      ConfigError: there are no such files, or parquet cannot be read for want of pyarrow.
    """
    for split in splits:
        for pattern in (f"{split}-*.parquet", f"{split}.parquet", f"{split}.jsonl"):
            if files := sorted(folder.rglob(pattern)):
                for path in files:
                    yield from _beside(path) if path.suffix == ".jsonl" else _parquet(path)
                return
    raise missing(folder, [*local, f"{splits[0]}-*.parquet"], published)


def _beside(path: Path) -> Iterator[Row | Unreadable]:
    for row in json_lines(path):
        if isinstance(row, dict) and isinstance(row.get("image"), str):
            row["image"] = File(path.parent, (row["image"],))
        yield row


def _parquet(path: Path) -> Iterator[Row | Unreadable]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise ConfigError(
            "parquet files are read with pyarrow, which is not installed",
            where=str(path),
            fix="pip install 'vila-jax[parquet]'",
        ) from None
    try:
        for batch in parquet.ParquetFile(path).iter_batches(_AT_ONCE):
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these
        yield Unreadable(path.name, f"the file breaks off: {error}")


def picture(value: Any) -> bytes | Path:
    """The picture of a row: the bytes in it, or the path of a file that is there.

    Raises:
      BadRow: there is none.
    """
    if isinstance(value, Mapping):  # as the Hub's data sets hold pictures
        value = value.get("bytes")
    if isinstance(value, bytes) and value:
        return value
    if isinstance(value, File):
        return _stored(value)
    raise BadRow("there is no picture")


def _stored(file: File) -> Path:
    root = file.folder.resolve()
    for name in file.names:
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            raise BadRow(f"the name {name!r} leads out of the folder")
        if path.is_file():
            return path
    raise BadRow(f"there is no picture {file.names[0]!r}")


def fingerprint(shown: bytes | Path) -> str:
    """A name for a picture that has none: of its bytes, or of its file and folder."""
    return hashlib.sha256(shown).hexdigest()[:16] if isinstance(shown, bytes) else f"{shown.parent.name}/{shown.name}"
