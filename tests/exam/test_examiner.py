"""What the model is shown in each setting, against the same question asked through the public interface alone."""

import collections

import numpy as np
import pytest
from PIL import Image

from vila_jax.exam.examiner import LONGEST_ANSWER, Examiner, Setting, settings
from vila_jax.exam.items import draw_exam
from vila_jax.scenes import draw_scene


@pytest.fixture(scope="module")
def items():
    """Six questions, about at least one oblong picture."""
    drawn = draw_exam(20)
    square = [item for item in drawn if item.scene.image.shape[:2] == (96, 96)]
    oblong = [item for item in drawn if item.scene.image.shape[:2] != (96, 96)]
    return [square[0], oblong[0], *square[1:5]]


@pytest.fixture(scope="module")
def counts():
    return []


@pytest.fixture(scope="module")
def examiner(model, counts):
    return Examiner(model, batch=4, on_batch=counts.append)


def _alone(model, item, picture, budget):
    prompt = f"USER: <image>\n{item.question.text} ASSISTANT:"
    return model.generate(prompt, [picture], budget=budget, max_new_tokens=LONGEST_ANSWER)


BUDGETS = {
    Setting("full"): None,
    Setting("hired", 0.2): "hired:0.2",
    Setting("hired-code", 0.2): "hired:0.2,variant=code",
    Setting("random", 0.2, 3): "random:0.2,seed=3",
}


@pytest.mark.parametrize("setting", BUDGETS, ids=str)
def test_replies_are_those_of_each_question_alone(setting, examiner, model, items):
    replies = examiner.replies(items, setting)
    assert [reply.item for reply in replies] == items
    for item, reply in zip(items, replies, strict=True):
        answer = _alone(model, item, Image.fromarray(item.scene.image), BUDGETS[setting])
        assert (reply.text, reply.tokens) == (answer.text, answer.usage.visual_tokens_kept)


def test_the_replies_depend_on_the_setting(examiner, items):
    said = {setting: tuple(reply.text for reply in examiner.replies(items, setting)) for setting in BUDGETS}
    assert len(set(said.values())) > 1


def test_the_control_sees_nothing(examiner, model, items):
    for item, reply in zip(items, examiner.replies(items, Setting("blank")), strict=True):
        height, width, _ = item.scene.image.shape
        gray = Image.fromarray(np.full((height, width, 3), 128, np.uint8))
        assert reply.text == _alone(model, item, gray, None).text


def test_every_question_counts_once_towards_progress(examiner, counts, items):
    counts.clear()
    examiner.replies(items, Setting("full"))
    assert counts == [4, 2]


def _shown(examiner, item, keep):
    return examiner._view(item, Setting("downsample", keep))


def test_a_smaller_picture_costs_no_more_tokens_than_the_budget(examiner, items):
    for keep in (0.4, 0.2, 0.1):
        smaller = examiner.replies(items, Setting("downsample", keep))
        chosen = examiner.replies(items, Setting("hired", keep))
        assert all(a.tokens <= b.tokens for a, b in zip(smaller, chosen, strict=True))
        assert [r.tokens for r in smaller if r.item is not items[1]] == [{0.4: 72, 0.2: 36, 0.1: 18}[keep]] * 5


def test_a_smaller_picture_has_lost_its_pixels(examiner, items):
    """At 40 % it is made from half the pixels in each direction; below, all that is shown is the squashed overview."""
    square, oblong = items[:2]
    half = Image.fromarray(square.scene.image).resize((48, 48), Image.Resampling.BICUBIC)
    view = _shown(examiner, square, 0.4)
    assert not view.overview_only
    np.testing.assert_array_equal(view.picture, half)
    for item, keep in ((square, 0.2), (square, 0.1), (oblong, 0.4), (oblong, 0.1)):
        view = _shown(examiner, item, keep)
        assert view.overview_only
        image = examiner._overview.preprocessor(view.picture)
        assert image.geometry.num_tiles == 1
        whole = examiner.model.preprocessor(Image.fromarray(item.scene.image))
        np.testing.assert_array_equal(image.pixels, whole.pixels[:1])


def test_the_whole_comparison():
    count = collections.Counter((setting.method, setting.keep) for setting in settings(keeps=(0.5, 0.25), seeds=3))
    assert count.pop(("full", 1.0)) == count.pop(("blank", 1.0)) == 1
    assert count == {
        (method, keep): 3 if method == "random" else 1
        for method in ("hired", "hired-code", "downsample", "random")
        for keep in (0.5, 0.25)
    }


def test_one_size_is_compiled(examiner, items, count_compilations):
    """Another number of questions than the batch holds, and other pictures, reuse the programs."""
    examiner.replies(items[:4], Setting("hired", 0.2))
    with count_compilations() as count:
        examiner.replies(items[2:3], Setting("hired", 0.2))
        examiner.replies(items, Setting("hired", 0.2))
    assert count() == 0


def test_scenes_are_not_changed(examiner, items):
    examiner.replies(items[:1], Setting("downsample", 0.4))
    np.testing.assert_array_equal(items[0].scene.image, draw_scene(0, split="test").image)
