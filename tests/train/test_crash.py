"""Killed at any moment, stopped at any step, moved to other devices: the run ends as if nothing had happened.

The real program on a tiny page: packed batches made ahead of pictures and texts, some of which are bad; a sharded state
with an average; a checkpoint behind every second step.
"""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests.nano import export_narrow
from tests.train.data.faults import plant
from tests.train.tiny import checkpointed, exported, place, rows, same
from train import pages
from train.checkpoints import Checkpoints, flattened
from train.compile import abstract_state
from train.data.readers import READERS
from train.data.store import write_shards
from train.run import open_stage
from vila_jax.cli import exits

pytestmark = pytest.mark.slow

KILLS, STOPS = 20, 3
MESH = {"data": 2, "fsdp": 2, "tensor": 2}
PAGE = """
from tests.train.tiny import tiny
from train.recipe import Compute, Data, Optimizer, Rows, Safety
STAGE = tiny(
    {start!r}, "tiny/crash", learning_rate={{"projector": 1e-3, "decoder": 1e-3}}, steps=120, average=0.9,
    rows=Rows(4, tokens=128, tiles=3, bins=3), data=Data("drawn", threads=2, max_bad_share=0.5),
    optimizer=Optimizer(weight_decay=0.1, clip=1.0), compute=Compute("float32", "none", True, 128),
    safety=Safety(save_every=2, keep_last=2, keep_every=50),
)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A page and its data, and the programs that all lives compile but once."""
    folder = tmp_path_factory.mktemp("crash")
    (folder / "page.py").write_text(PAGE.format(start=str(export_narrow(folder / "narrow"))))
    planted = plant(folder / "published", 90, share=0.1)
    report = write_shards(READERS["llava"](folder / "published" / "data.json"), folder / "data" / "drawn", source="x")
    assert planted.of_rows.total() > 1 and report.bad == planted.of_files
    return folder


class Life:
    """A process of the run in `runs`, whose lines are read one by one."""

    def __init__(self, folder, runs, mesh=MESH):
        words = [str(folder / "page.py"), "--runs", str(runs), "--data", str(folder / "data"), "--log-every", "1"]
        words += ["--mesh", ",".join(f"{axis}={size}" for axis, size in mesh.items())]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={math.prod(mesh.values())}",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        command = [sys.executable, "-m", "train", *words]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, process_group=0)
        self.said = ""

    def until(self, steps):
        """Returns when so many steps of this life were told, or the process has ended; the last of them.

        Of none: when it has said what it will do.
        """
        last = 0
        for line in self.process.stderr:
            self.said += line
            if line.startswith("[tiny/crash]"):
                steps -= 1
                last = int(line.split()[1].split("/")[0])
            if steps <= 0 and (last or "memory of a device" in line):
                break
        return last

    def end(self, number=None):
        """Sends a signal, if any, and waits; the exit code."""
        if number is not None:
            self.process.send_signal(number)
        self.said += self.process.communicate(timeout=600)[1]
        return self.process.returncode


def state_of(folder, runs):
    """What the last checkpoint holds, by name, and where it stands in the data."""
    run = runs / "tiny" / "crash"
    stage = pages.from_json((run / "config.json").read_text())
    step = max(checkpointed(run))
    opened = open_stage(stage, place(runs, data=folder / "data", mesh=MESH))
    like = abstract_state(opened.trained, opened.optimizer, opened.rules, opened.placement)
    page = checkpointed(run)[step]["page"]
    with Checkpoints(run / "checkpoints", stage.safety, page=page, seed=stage.seed) as checkpoints:
        restored = checkpoints.restore(like)
    assert restored.step == step == stage.steps
    return jax.device_get(flattened(restored.state)), restored.position


def told(runs):
    """Of every step, what does not depend on the clock."""
    own = ("step", "loss", "accuracy", "grad_norm", "targets", "skipped")
    return [
        {name: value for name, value in row.items() if name in own or name.startswith(("bad/", "learning_rate/"))}
        for row in rows(runs / "tiny" / "crash")
    ]


@pytest.fixture(scope="module")
def uninterrupted(folder):
    life = Life(folder, folder / "uninterrupted")
    assert life.end() == 0, life.said
    return folder / "uninterrupted"


def as_if_nothing_had_happened(folder, runs, uninterrupted):
    (state, position), (expected, expected_position) = (state_of(folder, own) for own in (runs, uninterrupted))
    assert position == expected_position and any(stream["bad"] for stream in position["streams"])
    same(state, expected)
    same(exported(runs / "tiny" / "crash"), exported(uninterrupted / "tiny" / "crash"))
    assert told(runs) == told(uninterrupted)


def test_twenty_kills(tmp_path, folder, uninterrupted):
    """At any moment from the start of the process to its seventh step or so, amid saves too."""
    chance = random.Random(0)
    said = ""
    for _ in range(KILLS):
        life = Life(folder, tmp_path)
        life.until(chance.randint(0, 5))
        time.sleep(chance.random() * 0.08)
        assert life.end(signal.SIGKILL) == -signal.SIGKILL, life.said
        said += life.said
    assert "goes on behind step" in said  # how far they come depends on the machine
    life = Life(folder, tmp_path)
    assert life.end() == 0, life.said
    assert "damaged" not in said + life.said
    assert not (tmp_path / "tiny" / "crash" / "checkpoints" / "damaged").exists()
    as_if_nothing_had_happened(folder, tmp_path, uninterrupted)


def test_a_few_stops(tmp_path, folder, uninterrupted):
    """Nothing is done twice: it goes on from the very step at which it was asked to stop."""
    chance, stopped_at = random.Random(1), 0
    for _ in range(STOPS):
        life = Life(folder, tmp_path)
        step = life.until(chance.randint(1, 12))
        assert step > stopped_at
        assert life.end(signal.SIGTERM) == exits.STOPPED, life.said
        assert not stopped_at or f"goes on behind step {stopped_at}" in life.said
        stopped_at = max(checkpointed(tmp_path / "tiny" / "crash"))
        assert stopped_at >= step
    life = Life(folder, tmp_path)
    assert life.end() == 0 and f"goes on behind step {stopped_at}" in life.said
    as_if_nothing_had_happened(folder, tmp_path, uninterrupted)


def test_on_other_devices(tmp_path, folder, uninterrupted):
    for mesh in MESH, {"data": 4, "tensor": 2}:
        life = Life(folder, tmp_path, mesh)
        life.until(20)
        life.end(signal.SIGKILL)
    life = Life(folder, tmp_path, {"data": 1})
    assert life.end() == 0, life.said
    assert "goes on behind step" in life.said
    (_, position), (_, expected) = (state_of(folder, runs) for runs in (tmp_path, uninterrupted))
    assert position == expected
    for row, other in zip(told(tmp_path), told(uninterrupted), strict=True):
        assert row == pytest.approx(other, rel=1e-3)
    ours, theirs = (exported(runs / "tiny" / "crash") for runs in (tmp_path, uninterrupted))
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-3, atol=1e-3, err_msg=name)
    assert json.loads((tmp_path / "tiny" / "crash" / "finished.json").read_text())["steps"] == 120
