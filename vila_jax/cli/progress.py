"""What is going on during long work, for a person at a terminal; silent when stderr is none."""

import threading
from types import TracebackType

from rich import progress as bars
from rich.markup import escape

from vila_jax.cli import terminal


class Progress:
    """One line on stderr that says what is going on, and vanishes when that is over. Threads may share it.

    Args:
      enabled: False is silence, also at a terminal.
    """

    def __init__(self, enabled: bool = True):
        self._console = terminal.stderr()
        self._live = enabled and self._console.is_terminal and not self._console.is_dumb_terminal
        self._shown: bars.Progress | None = None
        self._task = bars.TaskID(0)
        self._lock = threading.RLock()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.finish()

    def phase(self, text: str) -> None:
        """Shows what goes on now, and for how long it has."""
        columns = (bars.SpinnerColumn(), bars.TextColumn("{task.description}"), bars.TimeElapsedColumn())
        with self._lock:
            self._show(text, columns, None)

    def on_tensor(self, name: str, done: int, total: int, verb: str = "loading") -> None:
        """Shows how far the reading of weights is, for `vila_jax.from_pretrained`; or what else is done with them."""
        text = f"{verb} {_short(name):<44}"
        columns = (
            bars.SpinnerColumn(),
            bars.TextColumn("{task.description}"),
            bars.BarColumn(bar_width=24),
            bars.DownloadColumn(),
            bars.TransferSpeedColumn(),
            bars.TimeRemainingColumn(compact=True),
        )
        with self._lock:
            if self._shown is None or self._shown.tasks[0].total != total:
                self._show(text, columns, total)
            if self._shown is not None:
                self._shown.update(self._task, completed=done, description=escape(text))

    def on_compile(self, program: str) -> None:
        """Says that a program is being compiled; for `vila_jax.from_pretrained`."""
        self.phase(f"compiling {program} (cached for next time)")

    def finish(self) -> None:
        """Takes the line away, so that something else can be printed."""
        with self._lock:
            if self._shown is not None:
                self._shown.stop()
            self._shown = None

    def mute(self) -> None:
        """Takes the line away for good."""
        with self._lock:
            self.finish()
            self._live = False

    def _show(self, text: str, columns: tuple[bars.ProgressColumn, ...], total: int | None) -> None:
        self.finish()
        if self._live:
            self._shown = bars.Progress(*columns, console=self._console, transient=True)
            self._task = self._shown.add_task(escape(text), total=total)
            self._shown.start()


def _short(name: str, length: int = 44) -> str:
    """The end of a tensor's name, where the names differ."""
    return name if len(name) <= length else f"…{name[1 - length :]}"
