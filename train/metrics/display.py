"""What a run says on the console: a bar with the time left at a terminal, a line for every row elsewhere.

vila_7b/align  ━━━━━━━━━━━━━━╺━━━━━━━━━━━  1,200/5,000  loss 1.234  10.3 k tokens/s  wait 1 %  1:12:05 left
[vila_7b/align] 1,200/5,000  loss 1.234  accuracy 61.2 %  learning rate 0.001  10.3 k tokens/s  …  1:12:05 left
"""

import datetime
import math
from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from train.metrics.rows import Row, Writer
from vila_jax.cli import units


def display(name: str, steps: int, done: int = 0, console: Console | None = None) -> Writer:
    """What fits the console: a `Bar` or `Lines`.

    Args:
      name: of the run.
      steps: of the whole run.
      done: that it already has.
      console: stderr by default.
    """
    console = console or Console(stderr=True, markup=False, highlight=False)
    live = console.is_terminal and not console.is_dumb_terminal
    return Bar(name, steps, done, console) if live else Lines(name, steps, console)


class Lines(Writer):
    """A line for every row."""

    def __init__(self, name: str, steps: int, console: Console):
        self._name, self._steps, self._console = name, steps, console
        self._left: float | None = None

    def advance(self, step: int, seconds_left: float | None) -> None:
        self._left = seconds_left

    def write(self, row: Row) -> None:
        parts = [f"[{self._name}] {row.step:,}/{self._steps:,}", *facts(row.values), left(self._left)]
        self._console.print("  ".join(parts), soft_wrap=True)

    def note(self, step: int, text: str) -> None:
        self._console.print(f"[{self._name}] step {step:,}: {text}", soft_wrap=True)


class Bar(Writer):
    """One line that moves; notes are printed above it, and the last row stays."""

    def __init__(self, name: str, steps: int, done: int, console: Console):
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:,}/{task.total:,}  {task.fields[facts]}  {task.fields[left]}"),
        )
        self._progress = Progress(*columns, console=console)
        self._task = self._progress.add_task(escape(name), total=steps, completed=done, facts="compiling", left="")
        self._progress.start()

    def advance(self, step: int, seconds_left: float | None) -> None:
        self._progress.update(self._task, completed=step, left=left(seconds_left))

    def write(self, row: Row) -> None:
        self._progress.update(self._task, facts="  ".join(facts(row.values)))

    def note(self, step: int, text: str) -> None:
        self._progress.console.print(f"step {step:,}: {text}", soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()


def facts(values: Mapping[str, float]) -> list[str]:
    """What of a row a person wants to see while it runs."""
    said = []
    if "loss" in values:
        said.append(f"loss {values['loss']:.4g}")
    if "accuracy" in values:
        said.append(f"accuracy {_share(values['accuracy'])}")
    rates = {value for name, value in values.items() if name.startswith("learning_rate/")}
    if rates:
        said.append(f"learning rate {'/'.join(f'{rate:.3g}' for rate in sorted(rates))}")
    if "tokens_per_second" in values:
        said.append(f"{units.count(values['tokens_per_second'])} tokens/s")
        said.append(f"{units.seconds(values['step_seconds'])}/step")
        said.append(f"wait {_share(values['data_wait'])}")
    if "mfu" in values:
        said.append(f"MFU {_share(values['mfu'])}")
    bad = sum(value for name, value in values.items() if name.startswith("bad/"))
    said += [f"{value:,} {word}" for word, value in (("skipped", values.get("skipped", 0)), ("bad", bad)) if value]
    return said


def left(seconds: float | None) -> str:
    """`3725` -> `1:02:05 left`."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    return f"{datetime.timedelta(seconds=round(seconds))} left"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"
