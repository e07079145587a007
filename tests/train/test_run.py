"""A run from its page to its exported model: what it leaves, how it stops and goes on, and what ends it."""

import dataclasses
import json
import os
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

import train.run
import vila_jax
from tests.nano import export_narrow
from tests.train.tiny import STEPS, checkpointed, exported, losses, notes, place, rows, same, tiny
from train import pages
from train.recipe import Safety
from train.run import train as run_stage
from train.stopping import Stopping
from vila_jax.cli import exits
from vila_jax.errors import CheckpointError, ConfigError, TrainingDiverged
from vila_jax.scenes import draw_scene


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    return export_narrow(tmp_path_factory.mktemp("narrow") / "model")


@pytest.fixture(scope="module")
def runs(narrow, tmp_path_factory):
    """A folder in which `tiny/first` has finished."""
    runs = tmp_path_factory.mktemp("runs")
    assert run_stage(tiny(narrow), place(runs)) == 0
    return runs


class StoppedBehind(Stopping):
    """The process gets a signal behind this step, by the time that the loop asks for one."""

    step = 0

    def asked(self, step):
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)
            while not self.exit_code:
                pass
        return super().asked(step)


@pytest.fixture
def stop_behind(monkeypatch):
    """`stop_behind(step)`: every run from now on stops there; None lets them run."""

    def choose(step):
        StoppedBehind.step = step
        monkeypatch.setattr(train.run, "Stopping", StoppedBehind)

    return choose


def test_what_a_run_leaves(runs, narrow):
    run = runs / "tiny" / "first"
    assert pages.from_json((run / "config.json").read_text()) == tiny(narrow)
    own = rows(run)
    assert [row["step"] for row in own] == list(range(1, STEPS + 1))
    assert own[-1]["loss"] < own[0]["loss"] and all(np.isfinite(row["grad_norm"]) for row in own)
    assert {key for key in own[0] if key.startswith("grad_norm/")} == {"grad_norm/projector", "grad_norm/decoder"}
    assert [row["learning_rate/decoder"] for row in own] == pytest.approx([0, 1e-2, 0.75e-2, 0.25e-2])
    assert own[-1]["skipped"] == 0 and 0 < own[-1]["fill/tokens"] <= 1
    assert list((run / "tensorboard").iterdir())
    with Image.open(run / "loss.png") as plot:
        assert plot.size[0] > 100
    assert json.loads((run / "finished.json").read_text())["steps"] == STEPS
    arrays = {step: about["arrays"] for step, about in checkpointed(run).items()}
    assert arrays.keys() == {2, 4}
    kept = {name.split(".")[0] for name in arrays[4]}
    assert "trained/decoder" in kept and not any("vision_tower" in name for name in kept)


def test_what_was_not_trained_is_as_it_was(runs, narrow):
    before, after = vila_jax.from_pretrained(narrow, dtype="float32"), exported(runs / "tiny" / "first")
    tower = {name: value for name, value in after.items() if "vision" in name}
    assert len(tower) > 20 and before.checkpoint.config.vlm.vision.hidden_size == 24
    whole = {name: np.asarray(value, np.float32) for name, value in _tensors(narrow).items()}
    for name, value in after.items():
        assert np.array_equal(value, whole[name]) == (name in tower), name


def _tensors(folder):
    from safetensors.torch import load_file  # of the two, the one that knows bfloat16

    return {name: value.float().numpy() for name, value in load_file(folder / "model.safetensors").items()}


def test_its_export_answers(runs):
    model = vila_jax.from_pretrained(runs / "tiny" / "first" / "export", budget="hired:0.4")
    picture = Image.fromarray(draw_scene(0, split="test").image)
    answer = model.generate("USER: <image>\nWhat is there? ASSISTANT:", [picture], max_new_tokens=4, ignore_eos=True)
    assert len(answer.token_ids) == 4 and 0 < answer.usage.visual_tokens_kept < 100


def test_a_second_start_has_nothing_to_do(runs, narrow, capsys):
    before = (runs / "tiny" / "first" / "metrics.jsonl").stat().st_mtime_ns
    assert run_stage(tiny(narrow), place(runs)) == 0
    assert "tiny/first: finished already" in capsys.readouterr().err
    assert (runs / "tiny" / "first" / "metrics.jsonl").stat().st_mtime_ns == before


def test_stopped_it_goes_on_as_if_nothing_had_happened(runs, narrow, tmp_path, stop_behind, capsys):
    stop_behind(3)
    run = tmp_path / "tiny" / "first"
    assert run_stage(tiny(narrow), place(tmp_path)) == exits.STOPPED
    assert checkpointed(run).keys() == {2, 3} and not (run / "export").exists()
    frozen = {path: path.stat().st_mtime_ns for path in (run / "checkpoints" / "frozen").rglob("*")}
    with pytest.raises(ConfigError, match=r"'tiny/first' has not finished \(step 3 of 4\)"):
        run_stage(tiny("tiny/first", name="tiny/second"), place(tmp_path))
    page = (run / "config.json").read_text()
    with pytest.raises(ConfigError, match="drawn from it"):
        run_stage(tiny(narrow, seed=1), place(tmp_path))
    assert (run / "config.json").read_text() == page
    stop_behind(None)
    assert run_stage(tiny(narrow), place(tmp_path)) == 0
    assert "goes on behind step 3" in capsys.readouterr().err
    assert losses(run) == losses(runs / "tiny" / "first")
    same(exported(run), exported(runs / "tiny" / "first"))
    assert {path: path.stat().st_mtime_ns for path in (run / "checkpoints" / "frozen").rglob("*")} == frozen


def test_a_damaged_checkpoint_is_passed_over_and_told(runs, narrow, tmp_path, stop_behind):
    stop_behind(3)
    run = tmp_path / "tiny" / "first"
    assert run_stage(tiny(narrow), place(tmp_path)) == exits.STOPPED
    for path in (run / "checkpoints" / "steps" / "3" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    stop_behind(None)
    assert run_stage(tiny(narrow), place(tmp_path)) == 0
    assert notes(run) == ["the checkpoint of step 3 was damaged; gone on from that of step 2"]
    same(exported(run), exported(runs / "tiny" / "first"))


def test_an_export_that_is_missing_is_made_from_the_last_checkpoint(runs, narrow, tmp_path):
    shutil.copytree(runs / "tiny" / "first", tmp_path / "tiny" / "first")
    shutil.rmtree(tmp_path / "tiny" / "first" / "export")
    with pytest.raises(CheckpointError, match="its export is gone"):
        run_stage(tiny("tiny/first", name="tiny/second"), place(tmp_path))
    (tmp_path / "tiny" / "first" / "finished.json").unlink()
    assert run_stage(tiny(narrow), place(tmp_path)) == 0
    same(exported(tmp_path / "tiny" / "first"), exported(runs / "tiny" / "first"))
    assert losses(tmp_path / "tiny" / "first") == losses(runs / "tiny" / "first")


def test_what_diverges_is_saved_and_ends(narrow, tmp_path):
    """Behind the first step, in which the rate is still 0, every loss is infinite or none."""
    safety = Safety(save_every=100, max_skipped=2)
    stage = tiny(narrow, learning_rate={"projector": 1e30, "decoder": 1e30}, steps=20, safety=safety)
    run = tmp_path / "tiny" / "first"
    with pytest.raises(TrainingDiverged, match="2 steps in a row were skipped") as caught:
        run_stage(stage, place(tmp_path))
    assert caught.value.exit_code == 11
    [step] = checkpointed(run)
    assert 3 < step < 10 and not (run / "export").exists()
    assert [note.split(":")[0] for note in notes(run)][:2] == ["skipped", "skipped"]
    assert (run / "loss.png").exists()
    with pytest.raises(TrainingDiverged):  # the same command does not go on as if nothing had happened
        run_stage(dataclasses.replace(stage), place(tmp_path))


def test_a_new_model_and_the_stage_after_it(tmp_path):
    """From nothing, the tower by its labels; then by name."""
    rates = {"tower": 1e-3, "heads": 1e-3}
    assert run_stage(tiny(None, learning_rate=rates, objective="labels", steps=2), place(tmp_path)) == 0
    assert {key for key in rows(tmp_path / "tiny" / "first")[0] if key.startswith("grad_norm/")} == {
        "grad_norm/tower", "grad_norm/heads",
    }  # fmt: skip
    both = tiny("tiny/first", "tiny/second", objective="answers+labels", learning_rate={**rates, "decoder": 1e-3})
    assert run_stage(dataclasses.replace(both, steps=2), place(tmp_path)) == 0
    first, second = (exported(tmp_path / "tiny" / name) for name in ("first", "second"))
    assert first.keys() == second.keys() and not any("heads" in name for name in first)
    moved = {name for name, value in second.items() if not np.array_equal(value, first[name])}
    assert {name.split(".")[0] for name in moved} == {"vision_tower", "language_model"}
