"""What the writers write, read back by those that it is for."""

import importlib.machinery
import math
import sys
import types

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train.metrics import history
from train.metrics.rows import Row
from train.metrics.writers import TensorBoard, Wandb, open_writers
from vila_jax.errors import ConfigError


def scalars(folder):
    """What TensorBoard makes of a folder: by tag, steps and values."""
    found = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_reads_our_files(tmp_path):
    writer = TensorBoard(tmp_path)
    values = {
        7: {"loss": 0.1, "grad_norm/decoder": 3e-7},
        300: {"loss": math.nan, "targets": 123456},
        2**40: {"loss": 1},
    }
    for step, own in values.items():
        writer.write(Row(step, own))
    found = scalars(tmp_path)  # before it is closed: what was written can be seen
    writer.close()
    assert set(found) == {"loss", "grad_norm/decoder", "targets"}
    assert [step for step, _ in found["loss"]] == [7, 300, 2**40]
    np.testing.assert_array_equal([value for _, value in found["loss"]], np.float32([0.1, math.nan, 1]))
    assert found["grad_norm/decoder"] == [(7, np.float32(3e-7))] and found["targets"] == [(300, 123456)]


def test_tensorboard_forgets_what_a_resumed_run_repeats(tmp_path):
    for done, steps in ((0, (10, 20, 30)), (20, (21, 30, 40))):
        writer = TensorBoard(tmp_path, done)
        for step in steps:
            writer.write(Row(step, {"loss": done + 0.5}))
        writer.close()
    assert scalars(tmp_path)["loss"] == [(10, 0.5), (20, 0.5), (21, 20.5), (30, 20.5), (40, 20.5)]


class Run:
    """Stands for a run of Weights & Biases."""

    def __init__(self, **options):
        self.options, self.logged, self.over = options, [], False

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.over = True


@pytest.fixture
def wandb(monkeypatch):
    """In place of the package: refuses to start online if `reachable` is False."""

    class Error(Exception):
        pass

    module = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    module.errors, module.reachable, module.runs = types.SimpleNamespace(Error=Error), True, []

    def init(**options):
        if not module.reachable and options.get("mode") != "offline":
            raise Error("no key")
        module.runs.append(Run(**options))
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb(tmp_path, wandb):
    writer = Wandb("vila_7b/align", tmp_path, {"steps": 9})
    writer.write(Row(3, {"loss": 0.5}))
    writer.close()
    (run,) = wandb.runs
    assert (
        run.options["id"] == "vila_7b-align"
        and run.options["resume"] == "allow"
        and run.options["config"] == {"steps": 9}
    )
    assert run.logged == [(3, {"loss": 0.5})] and run.over


def test_wandb_without_a_network(tmp_path, wandb):
    wandb.reachable = False
    with pytest.warns(UserWarning, match="offline: no key"):
        Wandb("run", tmp_path, {})
    assert wandb.runs[0].options["mode"] == "offline"


def test_wandb_is_not_required(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install 'vila-jax\[wandb\]'"):
        Wandb("run", tmp_path, {})


def test_all_writers_of_a_run(tmp_path, wandb, capsys):
    for writer in open_writers(tmp_path, name="nano/sft", steps=9, wandb=True):
        writer.write(Row(3, {"loss": 0.5}))
        writer.close()
    assert history.read(tmp_path / "metrics.jsonl") == [{"step": 3, "loss": 0.5}]
    assert scalars(tmp_path / "tensorboard") == {"loss": [(3, 0.5)]} and wandb.runs[0].logged
    assert "[nano/sft] 3/9  loss 0.5" in capsys.readouterr().err
