"""Drawn records: always the same, in words that the tokenizer knows, and true."""

import collections
import re

import numpy as np
import pytest

from train.data.records import Caption, Conversation, Document, decode, encode
from train.scenes import DRAWN
from train.scenes.conversations import MOST_TURNS, choose_questions
from train.scenes.source import SIZE, Shot, shots
from train.tokenizer import build_tokenizer
from vila_jax.scenes import KINDS, draw_scene
from vila_jax.scenes.world import COLORS, FINE_THINGS, SHAPES
from vila_jax.vision.open import open_image

NUMBERS = (0, 5, 17, SIZE - 1)


def texts(record):
    match record:
        case Conversation():
            return [message["content"] for message in record.messages]
        case Document():
            return list(record.sentences)
        case Caption():
            return [record.text]


@pytest.fixture(scope="module", params=DRAWN)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def records(name):
    dataset = DRAWN[name]()
    return [dataset[i] for i in range(30)]


def test_a_number_always_gives_the_same_record(name):
    first, again = DRAWN[name](), DRAWN[name]()
    drawn = [first[i] for i in NUMBERS]
    assert drawn == [again[i] for i in reversed(NUMBERS)][::-1]
    assert len({record.id for record in drawn}) == len(NUMBERS) and len({str(texts(r)) for r in drawn}) > 1
    assert [decode(encode(record)) for record in drawn] == drawn


def test_all_words_are_known(records):
    tokenizer = build_tokenizer()
    unknown = {text for record in records for text in texts(record) if "<unk>" in tokenizer.encode(text).tokens}
    assert not unknown


def test_pictures_are_those_of_the_scenes(records):
    for record in records[:5]:
        scenes = [shot.scene for shot in shots(record)]
        assert len(scenes) == len(record.pictures)
        for scene, picture in zip(scenes, record.pictures, strict=True):
            np.testing.assert_array_equal(np.asarray(open_image(picture)), scene.image)


@pytest.mark.parametrize("difficulty", ["full", "reading", "single"])
def test_a_caption_names_everything(difficulty):
    from train.scenes.captions import describe

    pattern = rf"an? ({'|'.join(COLORS)}) ({'|'.join((*SHAPES, *FINE_THINGS))})(?: with (\d(?: \d)*)| that says (\w+))?"
    for seed in range(20):
        scene = Shot(difficulty, seed).scene
        text = describe(scene, np.random.default_rng(seed))
        found = [(color, kind, digits or word) for color, kind, digits, word in re.findall(pattern, text)]
        assert collections.Counter(found) == collections.Counter((t.color, t.kind, t.content) for t in scene.objects)
        if len(scene.objects) > 1:
            assert all(f"{thing.color} {thing.kind}" in text and thing.place in text for thing in scene.objects)


def test_documents_place_every_picture_before_its_sentence():
    dataset = DRAWN["scenes:documents"]()
    for record in (dataset[i] for i in range(30)):
        assert len(record.matched) == len(record.pictures) >= 2
        for shot, index in zip(shots(record), record.matched, strict=True):
            assert all(f"{thing.color} {thing.kind}" in record.sentences[index] for thing in shot.scene.objects)
    assert any(len(record.sentences) > len(record.matched) + 1 for record in (dataset[i] for i in range(30)))


def test_conversations_ask_what_the_scene_answers():
    dataset = DRAWN["scenes:questions"]()
    turns: collections.Counter[int] = collections.Counter()
    for record in (dataset[i] for i in range(120)):
        [shot] = shots(record)
        answers = {question.text: question.answer for question in shot.scene.questions}
        said = [message["content"].removeprefix("<image>\n") for message in record.messages]
        pairs = [pair for pair in zip(said[::2], said[1::2], strict=True) if pair[0] != "Describe the picture."]
        assert pairs and all(answers[question] == answer for question, answer in pairs)
        turns[len(pairs)] += 1
    assert turns[1] >= 2 and max(turns) == MOST_TURNS and len(turns) > 6


def test_questions_are_balanced_over_kinds():
    """With one question a scene, every kind is asked as often as scenes allow it, not as often as it can be asked."""
    rng = np.random.default_rng(0)
    asked: collections.Counter[str] = collections.Counter()
    expected: collections.Counter[str] = collections.Counter()
    for seed in range(300):
        scene = draw_scene(seed)
        [question] = choose_questions(scene, 1, rng)
        asked[question.kind] += 1
        kinds = {question.kind for question in scene.questions}
        expected.update(dict.fromkeys(kinds, 1 / len(kinds)))
    for kind in KINDS:
        assert abs(asked[kind] - expected[kind]) < 4 * expected[kind] ** 0.5


def _calculated(question):
    a, sign, b = re.fullmatch(r"How many is (\d) (plus|minus) (\d) \?", question).groups()
    return " ".join(str(int(a) + int(b) if sign == "plus" else int(a) - int(b)))


def _listed(question):
    return re.split(r"[:.?]", question)[1].split()


ORACLES = {
    "How many words": lambda question: str(len(_listed(question))),
    "How many is": _calculated,
    "Repeat": lambda question: " ".join(_listed(question)),
    "Reverse": lambda question: " ".join(_listed(question)[::-1]),
    "Sort": lambda question: " ".join(sorted(_listed(question))),
    "Which word comes first": lambda question: _listed(question)[0],
    "Which word comes last": lambda question: _listed(question)[-1],
    "Which is larger": lambda question: max(re.findall(r"\d", question)),
    "Which is smaller": lambda question: min(re.findall(r"\d", question)),
    "Is": lambda question: "yes" if _is_a(*re.fullmatch(r"Is (\w+) a (\w+) \?", question).groups()) else "no",
}


def _is_a(name, kind):
    return name in {"color": COLORS, "shape": SHAPES, "thing": FINE_THINGS}[kind]


def test_instructions_are_answered_right():
    dataset = DRAWN["scenes:text"]()
    seen: collections.Counter[str] = collections.Counter()
    for record in (dataset[i] for i in range(300)):
        assert not record.pictures
        said = [message["content"] for message in record.messages]
        for question, answer in zip(said[::2], said[1::2], strict=True):
            task = next(start for start in ORACLES if question.startswith(start))
            assert ORACLES[task](question) == answer, question
            seen[task] += 1
    assert min(seen[task] for task in ORACLES) > 20
