"""The results of runs as a table at the terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.runs.rows import Row, difference, percent, rows, tokens, warnings
from vila_jax.cli import terminal


def show(folders: Sequence[Path], variant: str | None = None) -> None:
    """Prints the headline of every run, and its difference to the run with all tokens."""
    columns = ("task", "budget", "value", "95 %", "less all tokens", "visual tokens", "ms", "done", "failed")
    made = terminal.table(None, *columns)
    found = rows(folders, variant)
    for row in found:
        made.add_row(*map(terminal.plain, cells(row)))
    terminal.stdout().print(made)
    for text in warnings(found):
        terminal.stderr().print(f"[yellow]warning:[/] {terminal.plain(text)}", soft_wrap=True)


def cells(row: Row) -> list[str]:
    """The texts of a row."""
    metric: dict[str, Any] = row.result["metric"]
    number = row.result["n"]
    interval = f"{percent(metric, 'low')} to {percent(metric, 'high')}" if metric["low"] is not None else "—"
    return [
        row.name,
        row.budget,
        percent(metric, "value"),
        interval,
        difference(row),
        tokens(row.result),
        f"{row.milliseconds:.0f}" if row.milliseconds is not None else "—",
        f"{number['done']} of {number['expected']}",
        str(number["failed"]),
    ]
