"""`vila-jax demo`, with a narrow model of random weights in place of the embedded one."""

import importlib.util
import json
import time

import numpy as np
import pytest
from PIL import Image

from tests.nano import export_narrow
from vila_jax import assets
from vila_jax.cli import demo
from vila_jax.cli.answer_sheet import Exhibit, draw_sheet
from vila_jax.cli.progress import Progress
from vila_jax.exam.items import Reply, draw_exam
from vila_jax.scenes import FINE, draw_scene

PICTURES = [f"{kind}_{number}.png" for number in range(1, 5) for kind in ("scene", "tokens")]


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    return export_narrow(tmp_path_factory.mktemp("demo") / "narrow")


@pytest.fixture(autouse=True)
def embedded(narrow, monkeypatch):
    monkeypatch.setattr(assets, "nano", lambda: narrow)
    monkeypatch.setattr(demo, "_BATCH", 4)


def test_it_prints_one_object_and_writes_its_pictures(vila_jax_cli, tmp_path):
    code, text, err = vila_jax_cli("demo", "--out", tmp_path / "new" / "out", "--seconds", "0", "--json")
    assert (code, err) == (0, "")
    facts = json.loads(text)
    assert facts["files"] == [
        str(tmp_path / "new" / "out" / name) for name in (*PICTURES, "answers.png", "accuracy.png")
    ]
    for name in facts["files"]:
        Image.open(name).load()
    for seed in range(4):
        picture = np.asarray(Image.open(tmp_path / "new" / "out" / f"scene_{seed + 1}.png"))
        scene = draw_scene(seed, split="test")
        np.testing.assert_array_equal(picture, scene.image)
        truths = {question.text: question.answer for question in scene.questions}
        for asked in facts["scenes"][seed]["questions"]:
            assert asked["truth"] == truths[asked["question"]]
            assert asked["full"]["tokens"] > 3 * asked["hired"]["tokens"] > 0
            assert asked["full"]["right"] == (asked["full"]["text"] == asked["truth"])
    assert (facts["examined"], [row["method"] for row in facts["rows"]]) == (4, ["full"])  # no time for more


def test_it_tells_a_person(vila_jax_cli, tmp_path):
    code, text, err = vila_jax_cli("demo", "--out", tmp_path, "--seconds", "0")
    assert (code, err) == (0, "")
    for seed in range(4):
        assert any(question.text in text for question in draw_scene(seed, split="test").questions)
    assert "all tokens" in text and "accuracy.png" in text and str(tmp_path) in text
    assert "16 right" in text  # "192 or 114 visual tokens: 0 of 16 right"


@pytest.mark.parametrize("missing", [["sklearn"], ["sklearn", "matplotlib"]])
def test_a_missing_extra_is_named_before_anything_is_written(missing, vila_jax_cli, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find(name))
    code, text, err = vila_jax_cli("demo", "--out", tmp_path / "out")
    assert (code, text) == (1, "")
    assert "scikit-learn" in err and ("matplotlib" in err) == (len(missing) == 2)
    assert "pip install 'vila-jax[demo]'" in err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_an_error(vila_jax_cli, tmp_path):
    (tmp_path / "file").write_text("x")
    code, _, err = vila_jax_cli("demo", "--out", tmp_path / "file" / "out")
    assert code == 1 and "it cannot be made" in err


def test_questions_are_of_different_kinds_and_reading_is_among_them():
    for seed in range(12):
        kinds = [item.question.kind for item in demo._questions(draw_scene(seed, split="test"), seed)]
        assert len(kinds) == len(set(kinds)) == 4 and kinds[0] in FINE


class _Examiner:
    """Answers instantly, all right; `seconds` pass with every question of the first settings."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds, self.asked = clock, seconds, []

    def replies(self, items, setting):
        self.asked.append(setting)
        self.clock.now += self.seconds
        return [Reply(item, item.question.answer, 36) for item in items]


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

    monkeypatch.setattr(time, "perf_counter", lambda: Clock.now)
    return Clock


def test_the_exam_grows_while_there_is_time(clock):
    rows = demo._examine(_Examiner(clock, 1), 30.0, Progress(enabled=False))
    assert len(rows) == 11  # all tokens, the control, and three methods at three fractions
    assert {row.scores["all"][0].asked for row in rows} == {2 * 4}  # 11 s a round: a third would end too late
    rows = demo._examine(_Examiner(clock, 0.001), clock.now + 30.0, Progress(enabled=False))
    assert {row.scores["all"][0].asked for row in rows} == {demo._MOST_BATCHES * 4}


def test_settings_that_time_does_not_reach_are_left_out(clock):
    examiner = _Examiner(clock, 10)
    rows = demo._examine(examiner, 35.0, Progress(enabled=False))
    assert [row.method for row in rows] == ["full", "hired", "random", "blank"]  # the budget on show comes first
    assert {row.scores["all"][0].asked for row in rows} == {4}


def test_the_sheet_marks_right_and_wrong_answers():
    items = draw_exam(4)
    right = [Reply(item, item.question.answer, 192) for item in items]
    wrong = [Reply(item, "no such answer at all, and a very long one", 36) for item in items]

    def colors(*replies):
        sheet = draw_sheet([Exhibit(items, replies)], "heading")
        return {color for _, color in sheet.crop((28 + 288, 0, *sheet.size)).getcolors(1 << 24)}

    green, red = (96, 199, 125), (240, 104, 104)
    assert green in colors(right) and red not in colors(right)
    assert red in colors(wrong) and green not in colors(wrong)
    assert {green, red} <= colors(right, wrong)
