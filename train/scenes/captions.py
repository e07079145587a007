"""Scenes in sentences: captions, documents with several pictures, and stories without any."""

from collections.abc import Sequence

import numpy as np

from train.data.records import Caption, Document
from train.scenes.source import Shot, show
from vila_jax.scenes import Scene, SceneObject
from vila_jax.scenes.world import PLACES

WORDS: tuple[str, ...] = (
    *("there", "and", "shows", "with", "says", "that", "this", "first", "second", "third", "last", "here", "are"),
    *("picture", "pictures", "describe"),
)
"""What the sentences need beyond the words of the questions."""

ORDINALS = ("first", "second", "third")  # the fourth is always the last

_READING = 0.4  # share of the large pictures that are full of things to read


def caption(rng: np.random.Generator, record_id: str) -> Caption:
    """A picture, and a sentence about everything in it."""
    shot = large(rng)
    record_id, pictures = show(record_id, [shot])
    return Caption(record_id, describe(shot.scene, rng), pictures)


def document(rng: np.random.Generator, record_id: str) -> Document:
    """Two to four pictures, each before a sentence about it; sentences about none stand in between."""
    count = int(rng.integers(2, 5))
    one_large = int(rng.integers(2 * count))  # in half of the documents, one of the pictures
    scenes = [large(rng) if i == one_large else Shot.draw(rng, "single") for i in range(count)]
    sentences: list[str] = []
    matched: list[int] = []
    if rng.random() < 0.5:
        sentences.append(f"Here are {count} pictures .")
    for shot in scenes:
        matched.append(len(sentences))
        sentences.append(describe(shot.scene, rng))
    if rng.random() < 0.7:
        sentences += _looking_back([shot.scene for shot in scenes], rng)
    record_id, pictures = show(record_id, scenes)
    return Document(record_id, tuple(sentences), tuple(matched), pictures)


def story(rng: np.random.Generator, record_id: str) -> Document:
    """A few captions without their pictures."""
    difficulties = ("full", "reading", "single")
    scenes = [Shot.draw(rng, difficulties[rng.integers(3)]).scene for _ in range(int(rng.integers(1, 4)))]
    sentences = [describe(scene, rng) for scene in scenes]
    return Document(record_id, (*sentences, *_looking_back(scenes, rng)), ())


def large(rng: np.random.Generator) -> Shot:
    """A scene of the usual size."""
    return Shot.draw(rng, "reading" if rng.random() < _READING else "full")


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """A sentence about everything in a scene, in reading order."""
    things = sorted(scene.objects, key=lambda thing: PLACES.index(thing.place))
    said = [phrase(thing) for thing in things]
    if len(things) > 1:
        said = [f"{words} at the {thing.place}" for words, thing in zip(said, things, strict=True)]
        said = [" , ".join(said[:-1]), said[-1]]
    start = ("There is", "This is", "This picture shows")[rng.integers(3)]
    return f"{start} {' and '.join(said)} ."


def phrase(thing: SceneObject) -> str:
    """A thing in words: "a red circle", "an orange plate with 4 7 2", "a blue sign that says cat"."""
    article = "an" if thing.color[0] in "aeiou" else "a"
    joint = {"card": " with ", "plate": " with ", "sign": " that says "}.get(thing.kind, "")
    return f"{article} {thing.color} {thing.kind}{joint}{thing.content}"


def _looking_back(scenes: Sequence[Scene], rng: np.random.Generator) -> list[str]:
    """A sentence that can only be known from an earlier picture, or from what was said of it."""
    number = int(rng.integers(len(scenes)))
    name = "last" if number == len(scenes) - 1 else ORDINALS[number]
    things = scenes[number].objects
    thing = things[rng.integers(len(things))]
    where = f", at the {thing.place} ," if len(things) > 1 else ""
    return [" ".join(f"In the {name} picture {where} there is {phrase(thing)} .".split())]
