"""`python -m eval nano` on a few scenes, with a narrow model of random weights."""

import json

import pytest
from PIL import Image

import eval.nano
from eval.__main__ import main
from tests.nano import export_narrow
from vila_jax.exam.examiner import Examiner, settings
from vila_jax.exam.items import draw_exam, score
from vila_jax.model import from_pretrained


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    return export_narrow(tmp_path_factory.mktemp("eval") / "narrow")


@pytest.fixture(autouse=True)
def fewer_settings(monkeypatch):
    monkeypatch.setattr(eval.nano, "settings", lambda seeds: settings(keeps=(0.2,), seeds=seeds))


def test_everything_is_written_and_adds_up(narrow, tmp_path):
    out = tmp_path / "docs" / "tiny"
    arguments = ["nano", "--model", narrow, "--scenes", 9, "--seeds", 2, "--batch", 4, "--out", out]
    assert main([str(argument) for argument in arguments]) == 0
    facts = json.loads((out / "accuracy.json").read_text())
    assert facts["command"] == "python -m eval nano --model DIR --scenes 9 --seeds 2 --batch 4"
    assert (facts["scenes"], facts["split"]) == (9, "test")
    found = {(row["method"], row["seeds"]) for row in facts["rows"]}
    assert found == {("full", 1), ("blank", 1), ("hired", 1), ("hired-code", 1), ("downsample", 1), ("random", 2)}
    items = draw_exam(9)
    examiner = Examiner(from_pretrained(str(narrow)), batch=4)
    [random] = [row for row in facts["rows"] if row["method"] == "random"]
    expected = [score(examiner.replies(items, s)).right for s in settings((0.2,), 2) if s.method == "random"]
    assert random["accuracy"]["all"]["right"] == expected
    page = (tmp_path / "docs" / "tiny.md").read_text()
    assert "| random tokens, 20 % |" in page and "](tiny/accuracy.png)" in page
    assert str(tmp_path) not in page  # nothing of this machine's folders
    Image.open(out / "accuracy.png").load()


def test_a_missing_model_is_an_error_without_a_traceback(tmp_path, capsys):
    assert main(["nano", "--model", str(tmp_path / "none"), "--scenes", "1"]) != 0
    assert "error:" in capsys.readouterr().err
