"""What a page may ask of a run, each on a whole run: additions, budgets, ways of computing, averages, a mesh."""

import json

import numpy as np
import pytest

import train.run
from tests.nano import export_narrow
from tests.train.tiny import STEPS, checkpointed, exported, losses, place, rows, tiny
from train import pages
from train.checkpoints import Checkpoints
from train.compile import abstract_state, make_step
from train.data.stream import drawn_budget
from train.lora import Lora
from train.recipe import Compute, Rows
from train.run import open_stage
from train.run import train as run_stage
from vila_jax.errors import ConfigError

MESH = {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    return export_narrow(tmp_path_factory.mktemp("narrow") / "model")


@pytest.fixture(scope="module")
def plain(narrow, tmp_path_factory):
    """A run of unrolled blocks without anything else."""
    runs = tmp_path_factory.mktemp("plain")
    assert run_stage(tiny(narrow), place(runs)) == 0
    return runs / "tiny" / "first"


def moved(run, narrow, tmp_path):
    """Tensors that a run has changed."""
    before = _exported_untouched(narrow, tmp_path)
    return {name for name, value in exported(run).items() if not np.array_equal(value, before[name])}


def _exported_untouched(narrow, folder):
    origin = open_stage(tiny(narrow), place(folder)).origin
    origin.export(origin.load(), folder / "untouched" / "export", dtype="float32")
    return exported(folder / "untouched")


def test_low_rank_additions(narrow, tmp_path):
    """Projector and additions are trained; the language below them and the tower are kept once, as they are."""
    stage = tiny(narrow, lora=Lora(rank=2, alpha=4.0))
    assert run_stage(stage, place(tmp_path)) == 0
    run = tmp_path / "tiny" / "first"
    assert losses(run)[-1] < losses(run)[0]
    arrays = checkpointed(run)[STEPS]["arrays"]
    trained = {name.removeprefix("trained/") for name in arrays if name.startswith("trained/")}
    assert {name.split(".")[0] for name in trained if ".lora." not in name} == {"projector", "newline"}
    frozen = json.loads((run / "checkpoints" / "frozen" / "about" / "about.json").read_text())["arrays"]
    assert any("decoder" in name for name in frozen) and not any("lora" in name for name in frozen)
    changed = moved(run, narrow, tmp_path)
    of_language = {name for name in changed if name.startswith("language_model")}
    assert len(of_language) == 2 * 7 and all("_proj.weight" in name for name in of_language)
    assert {name.split(".")[0] for name in changed - of_language} == {"multi_modal_projector", "image_newline"}


def test_every_budget_is_compiled_once(narrow, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(train.run, "make_step", lambda *args: made.append(make_step(*args)) or made[-1])
    stage = tiny(narrow, budgets=("full", "hired:0.4"), steps=8)
    assert {drawn_budget(stage.seed, step, 2) for step in range(stage.steps)} == {0, 1}
    assert run_stage(stage, place(tmp_path)) == 0
    assert [program._cache_size() for program in made] == [1, 1]
    assert losses(tmp_path / "tiny" / "first")[-1] < losses(tmp_path / "tiny" / "first")[0]


def test_another_way_of_computing_is_the_same_run(narrow, plain, tmp_path):
    """Blocks scanned and computed again for the backward pass, rows one after another, scores in other chunks; what is
    exported is the average."""
    stage = tiny(
        narrow,
        compute=Compute("float32", "full", True, 32),
        rows=Rows(2, tokens=224, tiles=5, bins=2, parts=2),
        average=0.5,
    )
    assert run_stage(stage, place(tmp_path)) == 0
    run = tmp_path / "tiny" / "first"
    np.testing.assert_allclose(losses(run), losses(plain), rtol=1e-5)
    opened = open_stage(stage, place(tmp_path))
    like = abstract_state(opened.trained, opened.optimizer, opened.rules)
    with Checkpoints(run / "checkpoints", stage.safety, page=json.loads(pages.to_json(stage)), seed=0) as checkpoints:
        state = checkpoints.restore(like).state
    ours, theirs = exported(run), exported(plain)
    assert ours.keys() == theirs.keys()
    [embedding] = [name for name in ours if name.endswith("embed_tokens.weight")]
    np.testing.assert_array_equal(ours[embedding], state.average["decoder.embedding"])
    np.testing.assert_allclose(state.trained["decoder.embedding"], theirs[embedding], atol=2e-4)
    assert not np.allclose(ours[embedding], theirs[embedding], atol=2e-4)


def test_a_mesh_of_eight_is_one_device(narrow, tmp_path):
    """Twenty steps over data, fsdp and tensor."""
    rates = {"projector": 1e-3, "decoder": 1e-3}
    own = Rows(4, tokens=224, tiles=5, bins=2)
    stage = tiny(narrow, learning_rate=rates, rows=own, steps=20, compute=Compute("float32", "minimal", True, 64))
    for name, mesh in (("one", None), ("eight", MESH)):
        assert run_stage(stage, place(tmp_path / name, mesh=mesh)) == 0
    one, eight = (tmp_path / name / "tiny" / "first" for name in ("one", "eight"))
    assert losses(one)[-1] < 0.97 * losses(one)[0] and len(losses(one)) == 20
    np.testing.assert_allclose(losses(eight), losses(one), rtol=1e-5)
    assert exported(one).keys() == exported(eight).keys()
    for name, value in exported(one).items():
        np.testing.assert_allclose(exported(eight)[name], value, atol=2e-3, err_msg=name)
    assert rows(eight)[-1]["fill/tokens"] == rows(one)[-1]["fill/tokens"]


def test_rows_that_cannot_be_shared_out_are_refused_at_the_start(narrow, tmp_path):
    with pytest.raises(ConfigError, match=r"2 rows .* cannot be shared out evenly among 8"):
        run_stage(tiny(narrow), place(tmp_path, mesh={"data": 8}))
    assert not (tmp_path / "tiny" / "first").exists()
