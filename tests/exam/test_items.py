"""The questions of the exam are fair, always the same, and scored as statisticians do."""

import collections

import numpy as np
import pytest
from scipy.stats import binomtest

from vila_jax.exam.items import GROUPS, Reply, Score, draw_exam, interval, score
from vila_jax.scenes import KINDS, draw_scene


@pytest.fixture(scope="module")
def items():
    return draw_exam(180)


def test_scenes_are_the_first_of_the_held_out_ones(items):
    for seed, item in enumerate(items[:40]):
        scene = draw_scene(seed, split="test")
        np.testing.assert_array_equal(item.scene.image, scene.image)
        assert item.question in scene.questions


def test_all_kinds_are_equally_frequent(items):
    for count in (90, 180):
        asked = collections.Counter(item.question.kind for item in items[:count])
        assert set(asked) == set(KINDS)
        assert max(asked.values()) - min(asked.values()) <= 2


def test_not_only_the_first_question_of_a_kind_is_asked(items):
    places = [[q for q in item.scene.questions if q.kind == item.question.kind].index(item.question) for item in items]
    assert np.mean(np.array(places) > 0) > 0.3


def test_a_longer_exam_begins_with_the_shorter_one(items):
    for short, long in zip(draw_exam(12), items, strict=False):
        assert short.question == long.question
    train = draw_exam(12, split="train")
    assert [item.question for item in train] != [item.question for item in items[:12]]


@pytest.mark.parametrize(("right", "asked"), [(0, 9), (9, 9), (1, 3), (850, 1000), (111, 334)])
def test_the_interval_is_wilsons(right, asked):
    expected = binomtest(right, asked).proportion_ci(method="wilson")
    np.testing.assert_allclose(interval(right / asked, asked), (expected.low, expected.high), atol=1e-6)


def test_nothing_asked_is_no_accuracy():
    assert np.isnan(Score(0, 0).accuracy) and np.isnan(interval(0.0, 0)).all()


def test_scores_count_exact_answers_of_the_kinds(items):
    replies = [Reply(item, item.question.answer if i % 3 else "nothing", 7) for i, item in enumerate(items)]
    assert score(replies) == Score(120, 180)
    for kinds in GROUPS.values():
        of_kinds = [i for i, item in enumerate(items) if item.question.kind in kinds]
        assert score(replies, kinds) == Score(sum(i % 3 > 0 for i in of_kinds), len(of_kinds))
    assert score(replies, ["word"]).asked == sum(item.question.kind == "word" for item in items)
