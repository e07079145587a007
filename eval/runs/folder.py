"""Where the files of runs lie below the folder of `--out`."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vila_jax.errors import DataError

SAMPLES, SCORES, RESULT, JUDGED = "samples.jsonl", "scores.jsonl", "result.json", "judged.jsonl"
ALL_TOKENS = "all"
"""Stands for no budget, on the command line and in names of folders."""

_SHARE = re.compile(r"samples-(\d+)-of-(\d+)\.jsonl")


def run_folder(out: Path, task: str, shots: int, budget: str | None) -> Path:
    """The folder of one run."""
    name = ALL_TOKENS if budget is None else re.sub(r"[^A-Za-z0-9.=-]+", "_", budget)
    return out / task / f"{shots}-shot" / name


def samples_file(folder: Path, host: tuple[int, int]) -> Path:
    """The file that host i of n writes."""
    return folder / (SAMPLES if host[1] == 1 else f"samples-{host[0]}-of-{host[1]}.jsonl")


def shares(folder: Path) -> dict[tuple[int, int], Path]:
    """The files of several hosts that lie in the folder of a run."""
    found = ((_SHARE.fullmatch(path.name), path) for path in sorted(folder.glob("samples-*.jsonl")))
    return {(int(match[1]), int(match[2])): path for match, path in found if match}


def find_runs(folder: Path) -> list[Path]:
    """The folders of all runs in and below a folder, in the order in which they were begun.

    Raises:
      DataError: there is none.
    """
    found = {path.parent for path in folder.rglob("samples*.jsonl")}
    if not found:
        fix = "Give what was --out of `python -m eval run`, or a folder below it."
        raise DataError("there is no run", where=str(folder), fix=fix)
    return sorted(found, key=lambda path: (_begun(path), str(path)))


def _begun(folder: Path) -> str:
    """When the first session started; files without one come first."""
    path = min(folder.glob("samples*.jsonl"))
    with path.open("rb") as file:
        lines = [file.readline(), file.readline()]
    try:
        return str(json.loads(lines[1])["session"]["started"])
    except (ValueError, KeyError, TypeError):
        return ""


def write_json(path: Path, value: Any) -> None:
    """Writes plain data, all or nothing."""
    replace(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a JSON object a line, all or nothing."""
    replace(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def replace(path: Path, text: str) -> None:
    """Writes a file, all or nothing."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
