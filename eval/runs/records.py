"""The file of a run: a header, then one line for every finished sample, each flushed before the next is begun.

    {"header": {...}}     what was run: see `eval.runs.identity`
    {"session": {...}}    one for every start of the program: when, where and by which versions
    {"sample": {...}}     one `Record`
    {"end": {...}}        when the session ended; there is none of a session that was stopped

A sample may have several lines, of which the last counts: one that failed is asked again by the next session. A process
that is killed can leave a last line without its end; it is cut off before more is added, and its sample asked again.
An unreadable line elsewhere is damage: it is reported, and its sample counts as missing.
"""

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from eval.runs.folder import write_lines
from vila_jax.errors import DataError

VERSION = 1


@dataclasses.dataclass(frozen=True)
class Record:
    """What became of one sample.

    Attributes:
      index: place among the samples of the task, from 0.
      id: name of the sample in the data set.
      cluster: name of its picture; scores of one cluster depend on each other.
      key: hash of all that the answer follows from, see `eval.runs.prepare`.
      question: what was asked, without demonstrations.
      prompt: the text that the model was given.
      answer: what it said; None if the sample failed.
      references, extras: what a metric needs besides.
      tokens: `text` and `visual` ones of the prompt, `visual_full` without the budget, and `new` ones.
      finish: `stop` or `length`.
      seconds: `preprocess` of the sample itself; `prefill` and `decode` of its batch divided by its samples.
      error: what went wrong: `kind` and `message`.
    """

    index: int
    id: str
    cluster: str
    key: str = ""
    question: str = ""
    prompt: str = ""
    answer: str | None = None
    references: tuple[str, ...] = ()
    extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokens: Mapping[str, int] = dataclasses.field(default_factory=dict)
    finish: str | None = None
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    error: Mapping[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Record":
        """The inverse of `to_json`; raises TypeError or KeyError for anything else."""
        return cls(**{**values, "references": tuple(values["references"])})


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a file of a run holds.

    Attributes:
      records: the last of every sample, by its index.
      damage: what cannot be read, a sentence each.
      end: where the readable part ends, in bytes; less than the file's size only if the last line was cut short.
    """

    header: dict[str, Any]
    sessions: list[dict[str, Any]]
    records: dict[int, Record]
    damage: list[str]
    end: int


def read(path: Path) -> Contents | None:
    """Reads a file; None where there is none, or nothing but the beginning of a header.

    Raises:
      DataError: it is not the file of a run, or of another version of this schema.
    """
    data = path.read_bytes() if path.exists() else b""
    end = data.rfind(b"\n") + 1
    if not end:
        return None
    contents = Contents({}, [], {}, [], end)
    for number, line in enumerate(data[:end].splitlines(), start=1):
        try:
            [(kind, value)] = json.loads(line).items()
            _take(contents, kind, value)
        except (ValueError, TypeError, LookupError, AttributeError):
            contents.damage.append(f"{path.name}, line {number}: unreadable; what it said is lost")
    if contents.header.get("schema_version") != VERSION:
        fix = "Give the folder of `python -m eval run`, or start anew with another --out."
        raise DataError(f"it does not begin with a header of version {VERSION}", where=str(path), fix=fix)
    return contents


def _take(contents: Contents, kind: str, value: dict[str, Any]) -> None:
    if kind == "header":
        contents.header.update(value)
    elif kind == "session":
        contents.sessions.append(value)
    elif kind == "sample":
        record = Record.from_json(value)
        contents.records[record.index] = record
    elif kind == "end":
        contents.sessions[-1].update(value)
    else:
        raise ValueError(kind)


class Writer:
    """Adds to the file of a run, which it locks. A context manager.

    Args:
      path: the file; it is begun, or what was cut short at its end is removed.
      header: of a new file; an existing one must have the same.
      session: of this start.

    Attributes:
      before: the records that were there.

    Raises:
      DataError: the file is another run's, or another process writes to it.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], session: Mapping[str, Any]):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._file = path, path.open("ab")
        try:
            self._lock()
            contents = read(path)
            self.before: dict[int, Record] = {} if contents is None else contents.records
            self._file.truncate(0 if contents is None else contents.end)
            if contents is None:
                self._write("header", {"schema_version": VERSION, **header})
            else:
                refuse_to_mix(contents.header, {"schema_version": VERSION, **header}, str(path))
            self._write("session", session)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._file.close()

    def add(self, records: Iterable[Record]) -> None:
        """Writes finished samples; they survive the process from here on, and after the last also the machine."""
        for record in records:
            self._write("sample", record.to_json())
        os.fsync(self._file.fileno())

    def end(self, when: Mapping[str, Any]) -> None:
        """Says of the session that all its samples are written."""
        self._write("end", when)

    def _write(self, kind: str, value: Mapping[str, Any]) -> None:
        self._file.write(json.dumps({kind: value}, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fix = "Wait for it, or give every process its own share with --host i/n."
            raise DataError("another process writes to it", where=str(self._path), fix=fix) from None


def write(path: Path, header: Mapping[str, Any], sessions: Iterable[Any], records: Iterable[Record]) -> None:
    """Writes a whole file, all or nothing."""
    rows = ({"session": session} for session in sessions)
    write_lines(path, [{"header": header}, *rows, *({"sample": record.to_json()} for record in records)])


def refuse_to_mix(found: Mapping[str, Any], own: Mapping[str, Any], where: str) -> None:
    """Compares two headers.

    Raises:
      DataError: they differ; the message says in what.
    """
    own = json.loads(json.dumps(own))  # tuples become lists, as in the file
    apart = list(_differences(found, own))
    if apart:
        shown = "; ".join(apart[:3]) + (f"; and {len(apart) - 3} more" if len(apart) > 3 else "")
        fix = "Go on with what it was begun with, or choose another --out."
        raise DataError(f"these answers were made otherwise: {shown}", where=where, fix=fix)


def _differences(found: Any, own: Any, name: str = "") -> Iterable[str]:
    if isinstance(found, Mapping) and isinstance(own, Mapping):
        for key in dict.fromkeys((*found, *own)):
            yield from _differences(found.get(key), own.get(key), f"{name}.{key}" if name else key)
    elif found != own:
        yield f"{name} was {_short(found)} and is {_short(own)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"
