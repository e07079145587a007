"""Conversations about a drawn scene: several questions with their answers, one after another."""

import numpy as np

from train.data.records import Conversation
from train.scenes.captions import describe, large
from train.scenes.source import show
from vila_jax.scenes import KINDS, Question, Scene

FEWEST_TURNS, MOST_TURNS = 6, 14  # of a conversation of more than one question; a scene may allow fewer

_SINGLE_TURN = 0.05  # share of the conversations that are one question; every first one is just as the exam asks it
_DESCRIBED = 0.1  # share of the conversations that begin with a description


def conversation(rng: np.random.Generator, record_id: str) -> Conversation:
    """Questions about one picture; every kind that the scene allows is asked about equally often."""
    shot = large(rng)
    turns = 1 if rng.random() < _SINGLE_TURN else int(rng.integers(FEWEST_TURNS, MOST_TURNS + 1))
    pairs = [(question.text, question.answer) for question in choose_questions(shot.scene, turns, rng)]
    if rng.random() < _DESCRIBED:
        pairs = [("Describe the picture.", describe(shot.scene, rng)), *pairs]
    record_id, pictures = show(record_id, [shot])
    return Conversation(record_id, turns_of(pairs, first="<image>\n"), pictures)


def turns_of(pairs: list[tuple[str, str]], first: str = "") -> tuple[dict[str, str], ...]:
    """Messages of questions and answers; `first` stands before the first question."""
    messages = [
        message
        for question, answer in pairs
        for message in ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    ]
    messages[0]["content"] = first + messages[0]["content"]
    return tuple(messages)


def choose_questions(scene: Scene, count: int, rng: np.random.Generator) -> list[Question]:
    """Draws questions so that every kind that the scene allows is asked about equally often."""
    by_kind = [[q for q in scene.questions if q.kind == kind] for kind in KINDS]
    by_kind = [[qs[i] for i in rng.permutation(len(qs))] for qs in by_kind if qs]
    depth = max(len(qs) for qs in by_kind)
    rounds = [qs[level] for level in range(depth) for qs in by_kind if level < len(qs)]
    first = len(by_kind)  # one question of every kind comes before the second of any
    head = [rounds[i] for i in rng.permutation(first)]
    return (head + rounds[first:])[:count]
