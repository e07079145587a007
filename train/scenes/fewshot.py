"""Tasks that nothing names: pictures, each with words in the same odd form, which has to be seen from the examples.

    <image>red : circle ! <image>blue : ring ! <image>white :        goes on with `star !`

A form is a sequence of slots (the colour and the kind of the only thing in the picture) and of marks between them. A
new one is drawn for every document. A few forms, `HELD_OUT`, never are: what a model does with them it has from the
examples before its eyes, and from nothing else (`eval/nano_fewshot.py`).
"""

from collections.abc import Sequence

import numpy as np

from train.data.records import Document
from train.scenes.source import Shot, show
from vila_jax.scenes import SceneObject

COLOR, KIND = "{color}", "{kind}"

MARKS = (":", ",", "!", "?", "and", "or", "with", "yes", "no", "it", "is")

END = "."
"""Of every example."""

Form = tuple[str, ...]

HELD_OUT: tuple[Form, ...] = (
    (KIND, "!", COLOR),
    ("no", COLOR, ":", KIND),
    (COLOR, COLOR, "or", KIND),
    (KIND, "is", "?", COLOR),
)
"""Forms of the test; training sees neither them nor any form that holds one of them."""


def fewshot(rng: np.random.Generator, record_id: str) -> Document:
    """Three to six examples of one form."""
    form = draw_form(rng)
    examples = [Shot.draw(rng, "single") for _ in range(int(rng.integers(3, 7)))]
    sentences = tuple(written(form, shot.scene.objects[0]) for shot in examples)
    record_id, pictures = show(record_id, examples)
    return Document(record_id, sentences, tuple(range(len(sentences))), pictures)


def draw_form(rng: np.random.Generator) -> Form:
    """Any form of training: two to four pieces, of which one at least is a slot and one a mark."""
    while True:
        pieces = [(COLOR, KIND)[rng.integers(2)] for _ in range(int(rng.integers(1, 4)))]
        pieces += [MARKS[rng.integers(len(MARKS))] for _ in range(int(rng.integers(1, 3)))]
        form = tuple(pieces[i] for i in rng.permutation(len(pieces)))[:4]
        if {COLOR, KIND} & set(form) and not any(_within(held_out, form) for held_out in HELD_OUT):
            return form


def written(form: Form, thing: SceneObject) -> str:
    """What the form says about a thing."""
    said = {COLOR: thing.color, KIND: thing.kind}
    return " ".join([*(said.get(piece, piece) for piece in form), END])


def _within(part: Sequence[str], whole: Sequence[str]) -> bool:
    width = len(part)
    return any(tuple(whole[i : i + width]) == tuple(part) for i in range(len(whole) - width + 1))
