"""`python -m train`: pages, folders of pages and words of the command line, to their end or to a clear error."""

import json

import jax
import pytest

import train.__main__
from tests.nano import export_narrow
from tests.train.data.faults import plant
from tests.train.tiny import exported, losses, notes
from train import pages
from train.__main__ import main

PAGE = """
from tests.train.tiny import tiny
STAGE = tiny({start!r}, name={name!r})
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two pages, one after the other."""
    folder = tmp_path_factory.mktemp("pages")
    narrow = export_narrow(folder / "narrow")
    (folder / "first.py").write_text(PAGE.format(start=str(narrow), name="tiny/first"))
    (folder / "second.py").write_text(PAGE.format(start="tiny/first", name="tiny/second"))
    (folder / "__init__.py").write_text(
        "import pathlib, runpy\n"
        "own = pathlib.Path(__file__).parent\n"
        "STAGES = tuple(runpy.run_path(str(own / f'{name}.py'))['STAGE'] for name in ('first', 'second'))\n"
    )
    return folder


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """One of the eight that tests have, in a process that JAX knows already."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(train.__main__, "start", lambda *cluster: None)


def words(folder, runs, *more, page="first.py"):
    return [str(folder / page), "--runs", str(runs), "--log-every", "1", *more]


def test_the_stages_of_a_folder(folder, tmp_path, capsys):
    """One after another; each says first what it will do."""
    given = words(folder, tmp_path, "--steps", "2", "--optimizer.b2=0.98", page="")
    assert main(given) == 0
    first, second = tmp_path / "tiny" / "first", tmp_path / "tiny" / "second"
    assert len(losses(first)) == len(losses(second)) == 2
    assert pages.from_json((second / "config.json").read_text()).optimizer.b2 == 0.98
    said = capsys.readouterr().err
    assert said.index("0.98") < said.index("[tiny/first] 1/2") < said.index("tiny/first: exported to")
    assert said.index("tiny/first: exported to") < said.index("[tiny/second] 2/2")
    assert exported(first).keys() == exported(second).keys()
    assert main(given) == 0
    assert "tiny/second: finished already" in capsys.readouterr().err


def test_one_round_of_a_prepared_data_set(folder, tmp_path, capsys):
    """From the published form to a model: what cannot be used is told when it is prepared, the rest is seen once."""
    planted = plant(tmp_path / "published", 120)
    source = tmp_path / "published" / "data.json"
    assert main(["prepare", "llava", str(source), "--out", str(tmp_path / "data" / "drawn")]) == 0
    index = json.loads((tmp_path / "data" / "drawn" / "index.json").read_text())
    assert index["bad"] == dict(planted.of_files) and index["records"] == 120 - planted.of_files.total()
    given = words(folder, tmp_path, "--data", str(tmp_path / "data"), "--data.mixture", "drawn", "--steps", "none")
    assert main([*given, "--data.max-bad-share", "0.2"]) == 0
    stage = pages.from_json((tmp_path / "tiny" / "first" / "config.json").read_text())
    samples = 120 / (2 * stage.steps)  # of a row, which has room for two of them
    assert 1.5 < samples < 3 and len(losses(tmp_path / "tiny" / "first")) == stage.steps
    assert f"[tiny/first] {stage.steps}/{stage.steps}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--optimizer.rul", "muon"], 3, "Did you mean --optimizer.rule?"),
        (["--rows.parts", "3"], 3, "2 rows cannot be looked at in 3 equal parts"),
        (["--learning-rate.decodr", "1e-3"], 3, "Did you mean 'decoder'?"),
        (["--data.mixture", "scenes:caption"], 3, "Did you mean 'scenes:captions'?"),
        (["--data.mixture", "llava_558k"], 3, "there is no data set 'llava_558k'"),
        (["--start", "tiny/frist"], 8, "neither a finished run, nor a folder"),
        (["--budgets", "full", "hirde:0.2"], 7, "Did you mean"),
        (["--budgets", "fastv:0.5,layer=1"], 7, "fastv shortens whole prompts inside the decoder"),
        (["--data.style", "plane"], 3, "unknown conversation style"),
        (["--mesh", "data=3"], 3, "cannot be laid over 1 devices"),
        (["--memory-gib", "0.001"], 3, "a device needs"),
        (["--profile", "3"], 3, "Name the first and the last step"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(folder, tmp_path, capsys, more, code, said):
    assert main(words(folder, tmp_path, *more)) == code
    err = " ".join(capsys.readouterr().err.split())
    assert "error: " in err and said in err and "Traceback" not in err
    assert not list(tmp_path.rglob("steps/*")) and not list(tmp_path.rglob("metrics.jsonl"))


def test_pages_that_are_none(tmp_path, capsys):
    (tmp_path / "page.py").write_text("STAGE = 1 / 0\n")
    for config, said in (
        ("configs/vila_7b/algin", "Did you mean configs/vila_7b/align?"),
        (str(tmp_path / "page.py"), "page.py:1: the page cannot be run: ZeroDivisionError"),
    ):
        assert main([config, "--runs", str(tmp_path / "runs")]) == 3
        assert said in " ".join(capsys.readouterr().err.split())
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert main(["--help"]) == 0
    assert "--learning-rate.GROUP" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_divergence_has_a_code_of_its_own(folder, tmp_path, capsys):
    more = ["--learning-rate.projector", "1e30", "--steps", "20", "--safety.max-skipped", "1"]
    assert main(words(folder, tmp_path, *more)) == 11
    assert "1 steps in a row were skipped" in capsys.readouterr().err
    assert notes(tmp_path / "tiny" / "first")[0].startswith("skipped")
