"""What studies have in common: the registry, the journal, the page."""

import argparse
import json

import pytest

from eval import studies
from eval.__main__ import main
from eval.studies.output import Journal, change, table


def test_a_study_that_this_checkout_lacks_is_not_offered(monkeypatch):
    monkeypatch.setattr(studies, "NAMES", ("encoder_pruning", "not_there"))
    assert list(studies.available()) == ["encoder_pruning"]
    studies.add_arguments(argparse.ArgumentParser())


@pytest.mark.parametrize("arguments", [["not_there"], ["encoder_pruning", "--seeds", "0"]])
def test_bad_arguments_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        main(["study", *arguments])
    assert arguments[-1] in capsys.readouterr().err


def test_a_finished_part_is_not_done_again_under_the_same_settings(tmp_path):
    path, calls = tmp_path / "study.partial.json", []

    def compute():
        calls.append(1)
        return {"value": (1, 2)}

    assert Journal(path, {"steps": (3, 4)}).once("a", compute) == {"value": [1, 2]}
    again = Journal(path, {"steps": (3, 4)})
    assert again.once("a", compute) == {"value": [1, 2]} and len(calls) == 1
    assert again.seconds > json.loads(path.read_text())["seconds"]
    Journal(path, {"steps": (5,)}).once("a", compute)
    assert len(calls) == 2
    again.close()
    assert not path.exists()


def test_tables():
    assert table(("form", "x"), [("a", "1")]) == "| form | x |\n| :-- | --: |\n| a | 1 |\n"
    assert [change(ratio) for ratio in (0.688, 1, 1.05)] == ["-31.2 %", "", "+5.0 %"]
