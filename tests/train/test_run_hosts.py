"""Two real processes: each reads its own rows, both take the steps of one, and the first writes the one export."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests.nano import export_narrow
from tests.train.tiny import exported, losses, place, tiny
from train.compile import make_state
from train.data.stream import open_batches
from train.recipe import Compute, Rows
from train.run import open_stage
from train.sharding import in_parts

pytestmark = pytest.mark.slow

PAGE = "from tests.train.test_run_hosts import stage\nSTAGE = stage({start!r})\n"
HOSTS = 2


def stage(start):
    rates = {"projector": 1e-3, "decoder": 1e-3}
    return tiny(
        start,
        learning_rate=rates,
        rows=Rows(4, tokens=224, tiles=5, bins=2),
        steps=20,
        compute=Compute("float32", "none", True, 128),
    )


def start(page, runs):
    """The processes, two devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "train", str(page), "--runs", str(runs), "--log-every", "1"]
    command += ["--mesh", "fsdp=2,tensor=2", "--coordinator", f"127.0.0.1:{port}", "--processes", str(HOSTS)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    return [
        subprocess.Popen([*command, "--process", str(host)], stderr=subprocess.PIPE, text=True, env=environment)
        for host in range(HOSTS)
    ]


def one_device(own, folder):
    """The run of one device that sees the rows of all hosts: its losses, and the weights at the end."""
    opened = open_stage(own, place(folder))
    trained, frozen = opened.load()
    state = make_state(trained, opened.optimizer, opened.rules)
    shares = [open_batches(own, opened.layouts, opened.sources, host=host, hosts=HOSTS) for host in range(HOSTS)]
    said = []
    for _ in range(own.steps):
        of_hosts = [next(batches)[1] for batches in shares]
        batch = {name: np.concatenate([rows[name] for rows in of_hosts]) for name in of_hosts[0]}
        state, metrics = opened.programs[0](state, frozen, in_parts(batch, 1))
        said.append(float(metrics["loss"]))
    for batches in shares:
        batches.close()
    opened.origin.export({**frozen, **state.trained}, folder / "expected" / "export", dtype="float32")
    return said


def test_two_processes_are_one(tmp_path):
    narrow = export_narrow(tmp_path / "narrow")
    (tmp_path / "page.py").write_text(PAGE.format(start=str(narrow)))
    processes = start(tmp_path / "page.py", tmp_path / "runs")
    said = [process.communicate(timeout=900)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert "[tiny/first] 20/20" in said[0] and "[tiny/first]" not in said[1]
    run = tmp_path / "runs" / "tiny" / "first"
    expected = one_device(stage(str(narrow)), tmp_path)
    np.testing.assert_allclose(losses(run), expected, rtol=1e-5)
    ours, theirs = exported(run), exported(tmp_path / "expected")
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, atol=2e-3, err_msg=name)
