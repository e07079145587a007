"""Killed at any moment, stopped at any step, moved to other devices: the run ends as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from vila_jax.cli import exits

pytestmark = pytest.mark.slow

STEPS, KILLS, STOPS = 110, 20, 3
MESH, OTHER_MESH = "2,2,2", "4,1,2"


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Compiled programs, which all runs share."""
    return tmp_path_factory.mktemp("programs")


class Life:
    """A process of the run in `folder`, whose lines are read one by one."""

    def __init__(self, folder, programs, mesh=MESH, steps=STEPS):
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "tests.train.crash_driver", str(folder), str(steps), mesh, str(programs)]
        self.errors = (folder / "stderr.txt").open("a")
        environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment, process_group=0
        )

    def until(self, lines):
        """The last of so many lines as (what, step); fewer if the process ends."""
        last = ""
        for _ in range(lines):
            last = self.process.stdout.readline() or last
        what, step = last.split() if last else ("nothing", 0)
        return what, int(step)

    def end(self, number=None):
        """Sends a signal, if any, and waits; the rest of the lines and the exit code."""
        if number is not None:
            self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=240)
        self.errors.close()
        return out.split("\n"), self.process.returncode


def outcome(folder):
    """Final state and position."""
    with np.load(folder / "done.npz") as arrays:
        return dict(arrays), json.loads((folder / "done.json").read_text())


def same(a, b):
    (state, position), (other_state, other_position) = a, b
    assert position == other_position and state.keys() == other_state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(value, other_state[name], err_msg=name)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, programs):
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    assert Life(folder, programs).end()[1] == 0
    return outcome(folder)


def test_twenty_kills(tmp_path, programs, uninterrupted):
    """At any moment from the start of the process to its fifth step, amid saves too; how many, chance decides."""
    chance = random.Random(0)
    folder, reached = tmp_path / "run", set()
    for _ in range(KILLS):
        life = Life(folder, programs)
        reached.add(life.until(chance.randint(1, 7)))
        time.sleep(chance.random() * 0.08)
        assert life.end(signal.SIGKILL)[1] == -signal.SIGKILL
    assert max(step for _, step in reached) > 10 and "restored" in {what for what, _ in reached}
    assert Life(folder, programs).end()[1] == 0
    assert "damaged" not in (folder / "stderr.txt").read_text() and not (folder / "checkpoints" / "damaged").exists()
    same(outcome(folder), uninterrupted)


def test_a_few_stops(tmp_path, programs, uninterrupted):
    """Nothing is done twice: it goes on from the very step at which it was asked to stop."""
    chance = random.Random(1)
    folder, stopped_at = tmp_path / "run", 0
    for _ in range(STOPS):
        life = Life(folder, programs)
        life.until(2)
        what, step = life.until(chance.randint(1, 12))
        assert what == "step" and step > stopped_at
        lines, code = life.end(signal.SIGTERM)
        [stopped_at] = [int(line.split()[1]) for line in lines if line.startswith("stopped")]
        assert code == exits.STOPPED and stopped_at >= step
        assert (folder / "checkpoints" / "steps" / str(stopped_at)).is_dir()
    life = Life(folder, programs)
    assert life.until(2) == ("restored", stopped_at) and life.end()[1] == 0
    same(outcome(folder), uninterrupted)


def test_on_other_devices(tmp_path, programs, uninterrupted):
    folder, (expected, position) = tmp_path / "run", uninterrupted
    life = Life(folder, programs)
    life.until(30)
    life.end(signal.SIGKILL)
    life = Life(folder, programs, OTHER_MESH)
    life.until(22)
    life.end(signal.SIGKILL)
    life = Life(folder, programs, "1,1,1")
    assert life.until(2)[1] > 30 and life.end()[1] == 0
    state, at = outcome(folder)
    assert at == position
    for name, value in state.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-4, err_msg=name)
