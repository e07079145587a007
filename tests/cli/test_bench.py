"""`vila-jax bench budgets`, with a narrow model of random weights in place of the embedded one."""

import csv
import json
import shutil

import pytest
from PIL import Image

from tests.nano import export_narrow
from vila_jax import assets
from vila_jax.bench.budgets import cost
from vila_jax.exam.examiner import Examiner

QUICK = ("--repeats", "1", "--new-tokens", "2", "--keep", "0.4")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    return export_narrow(tmp_path_factory.mktemp("bench") / "narrow")


@pytest.fixture(autouse=True)
def embedded(narrow, monkeypatch):
    monkeypatch.setattr(assets, "nano", lambda: narrow)


def test_a_report_is_written_and_continued(vila_jax_cli, tmp_path, monkeypatch):
    out = tmp_path / "new" / "budgets"
    exam = ("--eval", "scenes", "--samples", "9", "--out", out)
    code, text, err = vila_jax_cli("bench", "budgets", "nano", "--methods", "hired", *QUICK, *exam)
    assert (code, err) == (0, "")
    assert "hired:0.4" in text and "of [m, k] and [k, n]" in text and str(out) in text
    assert {path.name for path in out.iterdir()} == {"README.md", "budgets.json", "budgets.csv", "budgets.png"}
    assert (
        "--methods hired --keep 0.4 --repeats 1 --new-tokens 2 --eval scenes --samples 9"
        in (out / "README.md").read_text()
    )
    with Image.open(out / "budgets.png") as image:
        image.load()
    before = json.loads((out / "budgets.json").read_text())["rows"]
    assert [(row["case"]["method"], len(row["marks"]["right"])) for row in before] == [("all tokens", 9), ("hired", 9)]

    measure, asked, timed = cost.measure_costs, [], []
    answer = Examiner.budgeted
    monkeypatch.setattr(
        Examiner, "budgeted", lambda self, items, budget: asked.append(budget) or answer(self, items, budget)
    )
    monkeypatch.setattr(
        cost, "measure_costs", lambda model, rows, *more: timed.append(len(rows)) or measure(model, rows, *more)
    )
    again = vila_jax_cli("bench", "budgets", "nano", "--methods", "hired", *QUICK, *exam)
    assert again[0] == 0 and (asked, timed) == ([], [])
    vila_jax_cli("bench", "budgets", "nano", "--methods", "random", *QUICK, *exam)
    assert (asked, timed) == (["random:0.4"], [3])  # a new row is asked for itself, and timed beside the others
    with (out / "budgets.csv").open(newline="") as stream:
        assert [row["method"] for row in csv.DictReader(stream)] == ["all tokens", "random", "hired"]


def test_rows_of_other_weights_are_not_mixed(vila_jax_cli, tmp_path, monkeypatch, narrow):
    """Under the same name: a model that was trained further."""
    other = shutil.copytree(narrow, tmp_path / "other")
    data = bytearray((other / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "model.safetensors").write_bytes(data)
    words = ("bench", "budgets", "nano", "--methods", "random", *QUICK, "--out", tmp_path / "out")
    assert vila_jax_cli(*words)[0] == 0
    monkeypatch.setattr(assets, "nano", lambda: other)
    code, _, err = vila_jax_cli(*words)
    assert code == 1 and "measured with another checkpoint_sha256" in err


def test_one_object_on_stdout(vila_jax_cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (50, 90)).save("a.png")
    methods = ("--methods", "random,seed=3,hired:5000")
    code, text, err = vila_jax_cli(
        "bench",
        "budgets",
        "nano",
        *methods,
        *QUICK,
        "--batch",
        "2",
        "--image",
        "a.png",
        "--json",
        "-",
        "--csv",
        "b.csv",
    )
    assert (code, err) == (0, "")
    found = json.loads(text)
    assert (found["settings"]["pictures"], found["settings"]["batch"]) == ([[50, 90]] * 2, 2)
    _, random, refused = found["rows"]
    assert random["case"] == {"method": "random,seed=3", "keep": 0.4, "budget": "random:0.4,seed=3"}
    assert random["cost"]["first_token"]["median"] > 0 and random["marks"] is None
    assert refused["cost"] is None and "5000" in refused["refused"]
    assert (tmp_path / "b.csv").read_text().count("\n") == 4


@pytest.mark.parametrize(
    ("given", "expected", "named"),
    [
        (("--methods", "hierd"), 7, "hired"),
        (("--keep", "0"), 7, "KEEP is 0"),
        (("--json", "no/such/a.json"), 1, "no folder no/such"),
        (("--out", "."), 1, "not made by"),
        (("--eval", "vqa"), 2, "--eval"),
        (("--image", "missing.png"), 5, "no such file"),
    ],
)
def test_broken_requests(vila_jax_cli, given, expected, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("# My project\n")
    code, text, err = vila_jax_cli("bench", "budgets", "nano", *given)
    assert (code, text) == (expected, "")
    assert named in err
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_what_to_measure_must_be_said(vila_jax_cli):
    code, _, err = vila_jax_cli("bench")
    assert code == 2 and "WHAT" in err
    assert "--eval" in vila_jax_cli("bench", "budgets", "--help")[1]
