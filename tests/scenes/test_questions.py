"""Every answer is derived again, from the text of the question and the list of things alone."""

import collections
import re

import pytest

from vila_jax.scenes import (
    COARSE,
    FINE,
    KINDS,
    READING,
    SINGLE,
    VOCABULARY,
    Scene,
    SceneObject,
    draw_scene,
    exact_match,
    tokenize,
)
from vila_jax.scenes.world import COLORS, SHAPES

_SINGULAR = {"crosses": "cross", **{f"{shape}s": shape for shape in SHAPES if shape != "cross"}}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(seed, split=split) for split in ("train", "test") for seed in range(300)]


@pytest.fixture(scope="module")
def unusual() -> list[Scene]:
    return [draw_scene(seed, difficulty=difficulty) for difficulty in (READING, SINGLE) for seed in range(100)]


def _named(words: list[str], objects: tuple[SceneObject, ...]) -> list[SceneObject]:
    """Things that fit "shapes", "red shapes", "circles", "circle", "red card"."""
    *adjectives, noun = words
    if noun in ("shape", "shapes"):
        found = [thing for thing in objects if thing.kind in SHAPES]
    else:
        found = [thing for thing in objects if thing.kind == _SINGULAR.get(noun, noun)]
    return [thing for thing in found if all(thing.color == adjective for adjective in adjectives)]


def _third(low: int, high: int, extent: int, names: tuple[str, str, str]) -> str:
    return names[int((low + high) / 2 * 3 // extent)]


def _place(thing: SceneObject, scene: Scene) -> str:
    """Names the place by the thirds of the picture that the middle of the box is in."""
    height, width, _ = scene.image.shape
    x0, y0, x1, y1 = thing.box
    row = "middle" if height < width else _third(y0, y1, height, ("top", "middle", "bottom"))
    column = "center" if width < height else _third(x0, x1, width, ("left", "center", "right"))
    return "center" if (row, column) == ("middle", "center") else f"{row} {column}"


def _answers(kind: str, text: str, scene: Scene) -> list[str]:
    """All answers that the list of things allows; a good question has exactly one."""
    at = re.search(r"at the (.+)\?", text)
    if at:
        there = [thing for thing in scene.objects if _place(thing, scene) == at[1]]
        return [thing.kind if kind == "shape" else f"{thing.color} {thing.kind}" for thing in there]
    if kind == "count":
        named = re.fullmatch(r"How many (.+) (?:are there|do you see)\?", text)
        return [str(len(_named(named[1].split(), scene.objects)))]
    if kind == "exists":
        named = re.fullmatch(r"(?:Is there|Do you see) (?:a|an) (.+)\?", text)
        return ["yes" if _named(named[1].split(), scene.objects) else "no"]
    if kind == "shape":
        color = re.fullmatch(r"(?:What|Which) shape is (\w+)\?", text)[1]
        return [thing.kind for thing in _named([color, "shape"], scene.objects)]
    if kind in ("digits", "word"):
        thing = {"digits": "plate", "word": "sign"}[kind]
        color = [word for word in tokenize(text) if word in COLORS]
        return [thing.content for thing in _named([*color, thing], scene.objects)]
    named = re.search(r"the ([a-z ]+)\?", text)
    things = _named(named[1].split(), scene.objects)
    attribute = {"color": lambda t: t.color, "where": lambda t: _place(t, scene), "digit": lambda t: t.content}[kind]
    return [attribute(thing) for thing in things]


def test_every_answer_is_the_only_one(scenes, unusual):
    for scene in (*scenes, *unusual):
        for question in scene.questions:
            assert _answers(question.kind, question.text, scene) == [question.answer], (question, scene.objects)


def test_the_same_text_never_has_two_answers_in_a_scene(scenes, unusual):
    for scene in (*scenes, *unusual):
        pairs = {(question.text, question.answer) for question in scene.questions}
        assert len(pairs) == len({text for text, _ in pairs})


def test_yes_and_no_are_balanced_in_every_scene_and_for_every_color(scenes):
    by_color = collections.Counter()
    for scene in scenes:
        answers = [question.answer for question in scene.questions if question.kind == "exists"]
        assert answers.count("yes") == answers.count("no") > 0
        for question in scene.questions:
            if question.kind == "exists":
                color = next(color for color in COLORS if color in tokenize(question.text))
                by_color[color, question.answer] += 1
    for color in COLORS:  # no colour gives the answer away
        assert 0.35 < by_color[color, "yes"] / (by_color[color, "yes"] + by_color[color, "no"]) < 0.65


def test_a_card_is_never_mistaken_for_a_shape(scenes):
    for scene in scenes:
        cards = {thing.color for thing in scene.objects if not thing.is_shape}
        texts = [question.text for question in scene.questions if question.kind in ("exists", "count")]
        assert not any(f"{color} square" in text or f"{color} shapes" in text for color in cards for text in texts)


def test_all_kinds_are_asked_in_the_words_of_the_vocabulary(scenes):
    assert COARSE + FINE == KINDS and not set(COARSE) & set(FINE)
    assert len(set(VOCABULARY)) == len(VOCABULARY) < 128
    questions = [question for scene in scenes for question in scene.questions]
    assert {question.kind for question in questions} == set(KINDS)
    spoken = {word for question in questions for text in (question.text, question.answer) for word in tokenize(text)}
    assert spoken == set(VOCABULARY)  # 600 scenes use all of it, and nothing else
    for question in questions:  # nothing but spaces is lost between tokens
        assert "".join(tokenize(question.text)) == question.text.lower().replace(" ", "")
        assert question.answer == " ".join(tokenize(question.answer)) and len(tokenize(question.answer)) <= 3


def test_plural_articles_are_english(scenes):
    text = " ".join(question.text for scene in scenes for question in scene.questions)
    assert not re.search(r"\ba orange|\ban (?!orange)|crosss|\bcrosss?\b are", text)


@pytest.mark.parametrize(
    ("prediction", "answer", "same"),
    [
        ("Top  Left", "top left", True),
        (" yes.\n", "yes", True),
        ("4 7 2", "4 7 2", True),
        ("4 7", "4 7 2", False),
        ("47 2", "4 7 2", False),
        ("", "no", False),
        ("no no", "no", False),
    ],
)
def test_exact_match(prediction, answer, same):
    assert exact_match(prediction, answer) is same
