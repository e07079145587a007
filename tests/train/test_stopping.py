"""Signals end a run behind its step, with a code that launchers know; impatience and lateness end it at once."""

import os
import signal
import subprocess
import sys

import pytest

from train.stopping import Stopping
from vila_jax.cli import exits

LOOP = """
import hashlib, sys, time
from train.stopping import Stopping
deadline, saving, busy = map(float, sys.argv[1:])
with Stopping(deadline) as stopping:
    for step in range(1, 2000):
        print(step, flush=True)
        if step == 3 and busy:  # as in XLA: one call that lets other threads run, but no handler
            hashlib.pbkdf2_hmac("sha256", b"", b"", int(busy))
        time.sleep(0.01)
        if stopping.asked(step):
            time.sleep(saving)
            print("saved", flush=True)
            break
sys.exit(stopping.exit_code)
"""


def stopped(*signals, deadline=60.0, saving=0.0, busy=0):
    """Exit code, and the last line of a loop that gets signals behind its third step."""
    command = [sys.executable, "-c", LOOP, *map(str, (deadline, saving, busy))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.strip() == "3":
                break
        for number in signals:
            process.send_signal(number)
            process.stderr.readline(), process.stderr.readline()  # it has been heard
        out, err = process.communicate(timeout=120)
    return process.returncode, out.split()[-1] if out else "", err


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, exits.STOPPED), (signal.SIGUSR1, exits.STOPPED), (signal.SIGINT, exits.INTERRUPTED)],
)
def test_a_signal_ends_the_run_behind_its_step(number, code):
    assert stopped(number)[:2] == (code, "saved")


def test_a_second_signal_ends_it_at_once():
    code, last, err = stopped(signal.SIGTERM, signal.SIGINT, saving=100)
    assert code == 128 + signal.SIGINT and last != "saved" and not err.strip()


def test_a_late_save_ends_it_too():
    code, last, err = stopped(signal.SIGTERM, deadline=0.3, saving=100)
    assert code == exits.STOPPED and last != "saved" and "not done within" in err


def test_the_deadline_holds_where_no_handler_runs():
    code, last, _ = stopped(signal.SIGTERM, deadline=0.3, busy=2 * 10**9)
    assert code == exits.STOPPED and last != "saved"


def test_handlers_are_given_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    with Stopping() as stopping:
        assert not stopping.asked(1) and stopping.exit_code == 0
        os.kill(os.getpid(), signal.SIGUSR1)
        for _ in range(10**7):
            if stopping.asked(2):
                break
        assert stopping.exit_code == exits.STOPPED
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before
