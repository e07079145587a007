"""Writing to people and to pipes: tables, errors and warnings."""

import io
import json
import sys
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

_PIPE_WIDTH = 400  # a table in a pipe or a file is not broken to the width of a terminal that is not there
_CONTROLS = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


class _Console(Console):
    """A console that leaves a broken pipe to `main`, where rich would end the process with code 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def forgive_encoding() -> None:
    """A character that the output cannot show becomes `?`, instead of an exception."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def stdout() -> Console:
    """For what a command is asked for."""
    console = _Console(highlight=False)
    return console if console.is_terminal else _Console(highlight=False, width=_PIPE_WIDTH)


def stderr() -> Console:
    """For what happens meanwhile."""
    return _Console(stderr=True, highlight=False)


def table(title: str | None, *columns: str, header: bool = True) -> Table:
    """A table without frames: the first column is text, the others are numbers."""
    made = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD if header else None,
        show_header=header,
        show_edge=False,
        pad_edge=False,
        header_style="",
    )
    for i, name in enumerate(columns):
        made.add_column(name, justify="right" if i else "left", no_wrap=True, style="cyan" if i == 0 else None)
    return made


def plain(text: str) -> str:
    """Text in which nothing is markup."""
    return escape(text)


def bad(text: str) -> str:
    """Text that says that something is wrong."""
    return f"[red]{escape(text)}[/]"


def print_json(value: dict[str, Any]) -> None:
    """The one JSON object of `--json`, on one line of ASCII, which any pipe carries."""
    print(json.dumps(value))


def printable(text: str) -> str:
    """Text for stdout; if that is a terminal without control characters, by which a model could command it."""
    return text.translate(_CONTROLS) if sys.stdout.isatty() else text


def show_error(message: str, fix: str | None) -> None:
    """One message: what is wrong and where, and on a line of its own how to mend it."""
    console = stderr()
    console.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    if fix is not None:
        console.print(f"  {escape(fix)}", soft_wrap=True)


def show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """In place of `warnings.showwarning`: without the line of code, which helps no user."""
    del filename, lineno, file, line
    if not issubclass(category, (DeprecationWarning, PendingDeprecationWarning)):
        stderr().print(f"[yellow]warning:[/] {escape(str(message))}", soft_wrap=True)
