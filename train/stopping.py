"""Ending a run from outside without losing a step.

    signal                                  what sends it                                    exit code
    SIGTERM                                 Kubernetes, spot and TPU machines, SLURM, kill   143
    SIGUSR1                                 SLURM before its time limit (`--signal=USR1@120`) 143
    SIGINT                                  Ctrl-C                                           130

The first signal lets the step be finished and its checkpoint be written; 143 then says to a launcher that the same
command goes on from there. If that takes longer than the deadline, the program ends nevertheless, with the same code:
the last complete checkpoint counts. A second signal ends it at once.
"""

import os
import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils

from vila_jax.cli.exits import INTERRUPTED, STOPPED

DEADLINE = 25.0
"""Seconds from the signal to the end; Kubernetes, spot machines and SLURM kill after 30."""

_CODES = {signal.SIGTERM: STOPPED, signal.SIGUSR1: STOPPED, signal.SIGINT: INTERRUPTED}


class Stopping:
    """Listens for signals while it is open.

        with Stopping() as stopping:
            for step in ...:
                ...
                if stopping.asked(step):
                    save, wait and leave the loop
        return stopping.exit_code

    With several hosts it is enough that one of them gets SIGTERM: JAX's coordination service then names a step that
    none of them has passed, and all stop there. It catches that signal itself, so the others are handed on as SIGTERM.

    Args:
      deadline: seconds that the step and its checkpoint may take.
    """

    def __init__(self, deadline: float = DEADLINE):
        self._deadline = deadline
        self._several = jax.process_count() > 1
        self._code = 0
        self._timer: threading.Timer | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stopping":
        # Python runs handlers on the main thread, between two of its own instructions: not while XLA compiles or a step
        # is waited for. What is written to a pipe reaches another thread at once.
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._old_writer = signal.set_wakeup_fd(self._writer)
        threading.Thread(target=self._listen, args=(reader,), daemon=True, name="stopping").start()
        for number in _CODES:
            if not (self._several and number == signal.SIGTERM):
                self._before[number] = signal.signal(number, lambda *_: None)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_writer)
        os.close(self._writer)  # which ends the thread
        if self._timer is not None:
            self._timer.cancel()

    @property
    def exit_code(self) -> int:
        """Of the program: 0 if nobody has asked it to stop."""
        return self._code

    def asked(self, step: int) -> bool:
        """Whether to stop behind this step; to be asked by every host behind every step."""
        if self._several and multihost_utils.reached_preemption_sync_point(step):
            self._begin(self._code or STOPPED)
            return True
        return bool(self._code) and not self._several

    def _listen(self, reader: int) -> None:
        while number := os.read(reader, 1):
            if number[0] in _CODES:
                self._handle(number[0])
        os.close(reader)

    def _handle(self, number: int) -> None:
        if self._code:
            _end(128 + number, "stopped at once; the last complete checkpoint counts")
        name = signal.Signals(number).name
        _say(f"{name}: finishing the step and saving, within {self._deadline:.0f} s; a second signal ends it at once")
        self._begin(_CODES[signal.Signals(number)])
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)

    def _begin(self, code: int) -> None:
        """Starts the clock."""
        self._code = code
        if self._timer is None:
            late = f"not done within {self._deadline:.0f} s; the last complete checkpoint counts"
            self._timer = threading.Timer(self._deadline, _end, (code, late))
            self._timer.daemon = True
            self._timer.start()


def _end(code: int, text: str) -> None:
    """Ends the program without waiting for anything."""
    _say(text)
    os._exit(code)


def _say(text: str) -> None:
    """Writes past Python's buffers, which `os._exit` does not empty."""
    os.write(2, f"\n{text}\n".encode())
