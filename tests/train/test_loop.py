"""Training resumes where it stopped, bit for bit."""

import dataclasses
import json
import pathlib
import runpy

import jax
import numpy as np
import pytest

from train.config import Run
from train.loop import Trainer

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "nano.py"


def short_run() -> Run:
    """The recipe of nano with a few tiny steps."""
    run: Run = runpy.run_path(str(CONFIG))["RUN"]
    tower, answers = (
        dataclasses.replace(s, steps=4, warmup=1, scenes=1, questions=2) for s in (run.stages[0], run.stages[-1])
    )
    return dataclasses.replace(run, stages=(tower, answers), save_every=2, log_every=2)


def test_a_stopped_run_continues_exactly(tmp_path: pathlib.Path, monkeypatch):
    whole = Trainer(short_run(), tmp_path / "whole")
    (tmp_path / "whole").mkdir()
    (tmp_path / "halved").mkdir()
    expected = whole.train()

    halved = Trainer(short_run(), tmp_path / "halved")
    logged = Trainer._log

    def stop(self: Trainer, stage, step, *args):
        if (stage.name, step) == ("answers", 4):
            raise KeyboardInterrupt
        logged(self, stage, step, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_log", stop)
        with pytest.raises(KeyboardInterrupt):
            halved.train()
    assert halved.restore()[:2] == ("answers", 2)

    resumed = Trainer(short_run(), tmp_path / "halved").train()
    for left, right in zip(jax.tree.leaves(expected), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(left, right)
    rows = [json.loads(line) for line in (tmp_path / "halved" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in rows] == [
        ("tower", 2), ("tower", 4), ("answers", 2), ("answers", 4),
    ]  # fmt: skip
