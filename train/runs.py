"""The runs below a folder: which of them a stage may start from.

RUNS/NAME/config.json        the resolved page
         /metrics.jsonl      a line for every logged step
         /checkpoints/       what the run goes on from
         /finished.json      written last
         /export/            the checkpoint that the next stage starts from
"""

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vila_jax.errors import CheckpointError, ConfigError

CONFIG, METRICS, CHECKPOINTS, FINISHED, EXPORT = (
    "config.json",
    "metrics.jsonl",
    "checkpoints",
    "finished.json",
    "export",
)
START = "start"
"""Folder of what a page brings along itself, see `train.start`."""


def locate_start(name: str, runs: Path) -> str:
    """What a stage that starts from `name` reads: the export of the run of that name, or else `name` itself.

    Raises:
      ConfigError: there is such a run, and it has not finished.
      CheckpointError: it has finished, and its export is not there.
    """
    run = runs / name
    if not any((run / own).exists() for own in (METRICS, CHECKPOINTS, FINISHED)):
        return name
    if not (run / FINISHED).exists():
        raise ConfigError(
            f"the run {name!r} has not finished ({progress(run)})",
            where=str(run),
            fix="Start it again by the same command and let it go on to its end, or start from another one.",
        )
    if not (run / EXPORT / CONFIG).exists():
        raise CheckpointError(
            f"the run {name!r} has finished, but its export is gone",
            where=str(run / EXPORT),
            fix=f"Remove {FINISHED} and start the run again: it exports its last checkpoint.",
        )
    return str(run / EXPORT)


def progress(run: Path) -> str:
    """How far a run has come, for a message."""
    step, steps = _last(run / METRICS).get("step"), _json(run / CONFIG).get("steps")
    done = "no step is logged" if step is None else f"step {step}"
    return done if step is None or steps is None else f"{done} of {steps}"


def finished_runs(runs: Path) -> list[str]:
    """Names of the runs that a stage may start from."""
    return sorted(str(path.relative_to(runs)) for path in _runs(runs) if (path / FINISHED).exists())


def hint(name: str, runs: Path) -> str:
    """What to write instead of the name of a run that is not there."""
    known = finished_runs(runs)
    close = difflib.get_close_matches(name, known, 1)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Finished runs in {runs}: {', '.join(known) or 'none'}."


def _runs(folder: Path, depth: int = 3) -> Iterator[Path]:
    """Folders of runs; a name may hold slashes."""
    if not folder.is_dir() or depth < 0:
        return
    for path in sorted(folder.iterdir()):
        if (path / FINISHED).exists() or (path / METRICS).exists():
            yield path
        elif path.is_dir():
            yield from _runs(path, depth - 1)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _last(path: Path) -> dict[str, Any]:
    """The last whole line of a file of JSON lines; a run that was ended may leave half of one behind it."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            return value
    return {}
