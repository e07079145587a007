"""What a study writes: a journal while it runs; at the end a JSON file, a chart and the tables of its page."""

import argparse
import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from eval.report import circumstances, insert
from vila_jax.errors import VilaError

console = Console(stderr=True, highlight=False)
GREY = "#5b6472"


class Journal:
    """The parts that a study has finished, on disk, so that a study that was stopped goes on where it was.

    Args:
      path: a JSON file; one that was written with other settings is begun anew.
      settings: whatever decides the results, as plain data.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self._path, self._start = path, time.perf_counter()
        self._content: dict[str, Any] = {"settings": json.loads(json.dumps(settings)), "seconds": 0.0, "parts": {}}
        if path.exists():
            found = json.loads(path.read_text())
            if found["settings"] == self._content["settings"]:
                self._content = found
        self._before = self._content["seconds"]

    @property
    def seconds(self) -> float:
        """Time spent, that of earlier processes included."""
        return self._before + time.perf_counter() - self._start

    def once(self, part: str, compute: Callable[[], Any]) -> Any:
        """The result of a part, plain data: computed and written down, or read if it was finished before."""
        parts = self._content["parts"]
        if part not in parts:
            start = time.perf_counter()
            parts[part] = json.loads(json.dumps(compute()))
            self._content["seconds"] = self.seconds
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fresh = self._path.with_suffix(".new")
            fresh.write_text(json.dumps(self._content))
            os.replace(fresh, self._path)
            console.print(f"{part}: {time.perf_counter() - start:.0f} s")
        return parts[part]

    def close(self) -> None:
        """Removes the file, once the results are published."""
        self._path.unlink(missing_ok=True)


def command(args: argparse.Namespace, *options: str) -> str:
    """The command that makes a study again, without folders of this machine."""
    shown = [f"python -m eval study {args.study}"]
    shown += [f"--seeds {args.seeds}"] if args.seeds != 3 else []
    return " ".join([*shown, *(["--quick"] if args.quick else []), *options])


def publish(
    args: argparse.Namespace, journal: Journal, made_by: str, settings: Any, results: dict[str, Any], tables: str
) -> None:
    """Writes the JSON file and the section of the page, and closes the journal. The chart must be there.

    Args:
      made_by: the command.
      settings: a dataclass.
      results: plain data for the JSON file.
      tables: what the page says between its marks, without the circumstances and the chart.
    """
    facts = circumstances(None, made_by, journal.seconds)
    name = args.study
    content = facts | {"settings": dataclasses.asdict(settings), **results}
    (args.out / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    versions = ", ".join(f"{package} {version}" for package, version in facts["versions"].items())
    made = (
        f"Made by `{made_by}` on {facts['date']} in {facts['seconds'] / 60:.0f} min on {facts['machine']} ({versions})."
    )
    page = args.out / f"{name}.md"
    insert(page, f"{made}\n\n{tables.strip()}\n\n![{name}]({name}.png)", by=f"python -m eval study {name}")
    journal.close()
    console.print(f"wrote {name}.json, {name}.png and the tables of {name}.md to {args.out}", soft_wrap=True)


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table in Markdown; the first column is set left, the others right."""
    lines = [head, (":--", *("--:" for _ in head[1:])), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def change(ratio: float) -> str:
    """`-31.2 %`, and nothing for no change."""
    return "" if ratio == 1 else f"{100 * (ratio - 1):+.1f} %"


@contextlib.contextmanager
def chart(path: Path, *, title: str, note: str, panels: int = 2) -> Iterator[Any]:
    """Axes side by side to draw on; afterwards the chart is a PNG file.

    Raises:
      VilaError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise VilaError(
            "charts are drawn by matplotlib, which is not installed", fix="Run: pip install 'vila-jax[train]'"
        ) from error
    figure = Figure(figsize=(10.5, 4.8), dpi=150, layout="constrained")
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold")
    figure.supxlabel(note, fontsize=8, color=GREY, x=0.012, ha="left")
    axes = figure.subplots(1, panels)
    for one in axes:
        one.grid(axis="y", color="#e4e6ea", linewidth=0.8)
        one.set_axisbelow(True)
        one.spines[["top", "right"]].set_visible(False)
    yield axes
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
