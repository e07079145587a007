"""An exam: one question about each of many held-out scenes, and the score of the answers."""

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator

import numpy as np

from vila_jax.scenes.drawing import draw_scene
from vila_jax.scenes.questions import exact_match
from vila_jax.scenes.world import COARSE, FINE, KINDS, Question, Scene, Split

GROUPS: dict[str, tuple[str, ...]] = {"all": KINDS, "coarse": COARSE, "fine": FINE}
"""Kinds of questions that are scored together."""

_Z = 1.959964  # standard deviations on either side that hold 95 % of a normal distribution
_QUESTION_STREAM = 2  # the splits draw their scenes from streams 0 and 1


@dataclasses.dataclass(frozen=True)
class Item:
    """One question about one scene."""

    scene: Scene
    question: Question


def exam(split: Split = "test") -> Iterator[Item]:
    """Questions about the scenes of seeds 0, 1, 2, ...: never-ending, and always the same.

    Each scene is asked one question: of the kinds that it allows, one of the kind asked least often so far (the first
    in the order of `KINDS` among equals), drawn at random from the scene's questions of that kind. All nine kinds are
    thereby equally frequent, to within one or two questions.

    Raises:
      VilaError: scikit-learn, which holds the handwriting, is not installed.
    """
    asked = collections.Counter(dict.fromkeys(KINDS, 0))
    for seed in itertools.count():
        scene = draw_scene(seed, split=split)
        allowed = {question.kind for question in scene.questions}
        kind = min((kind for kind in KINDS if kind in allowed), key=asked.__getitem__)
        asked[kind] += 1
        choices = [question for question in scene.questions if question.kind == kind]
        draw = np.random.default_rng((seed, _QUESTION_STREAM)).integers(len(choices))
        yield Item(scene, choices[draw])


def draw_exam(count: int, split: Split = "test") -> list[Item]:
    """The first `count` questions of the exam."""
    return list(itertools.islice(exam(split), count))


@dataclasses.dataclass(frozen=True)
class Reply:
    """What the model said to an item, and how many visual tokens it saw (an upper bound for `variant=code`)."""

    item: Item
    text: str
    tokens: int

    @property
    def right(self) -> bool:
        """Whether the answer matches exactly."""
        return exact_match(self.text, self.item.question.answer)


@dataclasses.dataclass(frozen=True)
class Score:
    """Right answers among questions asked."""

    right: int
    asked: int

    @property
    def accuracy(self) -> float:
        """Share of right answers; NaN where nothing was asked."""
        return self.right / self.asked if self.asked else math.nan


def interval(accuracy: float, asked: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy over so many questions. Source: E. B. Wilson, JASA 22 (1927)."""
    if not asked:
        return math.nan, math.nan
    centre = accuracy + _Z**2 / (2 * asked)
    reach = _Z * math.sqrt(accuracy * (1 - accuracy) / asked + _Z**2 / (4 * asked**2))
    scale = 1 + _Z**2 / asked
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)


def score(replies: Iterable[Reply], kinds: Iterable[str] = KINDS) -> Score:
    """The score of the replies to questions of some kinds."""
    wanted = set(kinds)
    marks = [reply.right for reply in replies if reply.item.question.kind in wanted]
    return Score(sum(marks), len(marks))
