"""`metrics.jsonl`: one JSON object a line. Rows of logged steps, and notes.

    {"step": 20, "loss": 1.25, "learning_rate/projector": 0.001, "tokens_per_second": 5120.0, ...}
    {"step": 27, "note": "skipped: loss nan, gradient norm nan"}

A number that is not finite is null. A process that is killed may leave half a line, and rows of steps that no
checkpoint knows: the first is not read, the others are cut off when the run is resumed.
"""

import json
import os
from pathlib import Path
from typing import Any

from vila_jax.errors import ConfigError

FILE = "metrics.jsonl"


def read(path: Path) -> list[dict[str, Any]]:
    """All lines of a file, in order; none if there is no file. The last one counts only if it was finished.

    Raises:
      ConfigError: another line is not what this module says.
    """
    if not path.exists():
        return []
    *lines, rest = path.read_bytes().split(b"\n")
    del rest  # b"" behind a finished line
    return [_parsed(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            return entry
    except ValueError:
        pass
    raise ConfigError("this is no line of metrics", where=where, fix="Remove the line, or move the file away.")


def cut(path: Path, step: int) -> int:
    """Takes away what was written after `step`, from which a run goes on, so that no step comes twice.

    Returns:
      How many lines were taken away; an unfinished one counts.
    """
    if not path.exists():
        return 0
    kept = [entry for entry in read(path) if entry["step"] <= step]
    content = path.read_bytes()
    before = content.count(b"\n") + (not content.endswith(b"\n") and content != b"")
    if before == len(kept):
        return 0
    fresh = path.with_suffix(".new")
    fresh.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
    os.replace(fresh, path)
    return before - len(kept)
