"""`python -m train` on a narrow model: two stages of two steps, and what it leaves behind."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from tests.nano import narrow, recipe
from train.__main__ import main
from train.config import Stage
from train.loop import Trainer

_RUN = dataclasses.replace(
    narrow(recipe()),
    stages=(
        Stage("tower", kind="tower", steps=2, scenes=2, learning_rate=1e-3, warmup=1),
        Stage("answers", kind="answers", steps=2, scenes=2, questions=2, learning_rate=1e-3, warmup=1),
    ),
)
_PAGE = "from tests.train.test_main import _RUN as RUN\n"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    page = tmp_path_factory.mktemp("configs") / "page.py"
    page.write_text(_PAGE)
    return page


@pytest.fixture(scope="module")
def trained(page):
    out = page.parent / "runs"
    assert main([str(page), "--out", str(out)]) == 0
    return out


def test_it_trains_every_stage_and_exports(trained):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in rows] == [("tower", 2), ("answers", 2)]
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert (trained / "export" / "config.json").exists()


def test_the_newest_checkpoint_is_restored(trained, tmp_path):
    stage, step, params = Trainer(_RUN, trained).restore()
    assert (stage, step) == ("answers", 2)
    again = Trainer(_RUN, trained).train()  # nothing is left to do
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_export_only_writes_the_same_files(page, trained):
    before = safetensors.numpy.load_file(trained / "export" / "model.safetensors")
    (trained / "export" / "model.safetensors").unlink()
    assert main([str(page), "--out", str(trained), "--export-only"]) == 0
    after = safetensors.numpy.load_file(trained / "export" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(array, after[name])


def test_export_of_nothing_is_an_error_and_makes_no_folder(page, tmp_path, capsys):
    assert main([str(page), "--out", str(tmp_path / "none"), "--export-only"]) == 4
    assert "there is no checkpoint of this run" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
