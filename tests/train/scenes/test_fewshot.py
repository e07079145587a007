"""Tasks by examples: one form a document, and never one that is held out."""

import numpy as np

from train.scenes import DRAWN
from train.scenes.fewshot import COLOR, HELD_OUT, KIND, draw_form, written
from train.scenes.source import shots
from vila_jax.scenes.world import COLORS, FINE_THINGS, SHAPES, SceneObject


def test_forms_of_the_test_are_never_drawn():
    rng = np.random.default_rng(0)
    forms = {draw_form(rng) for _ in range(4000)}
    assert len(forms) > 800
    for form in forms:
        text = " ".join(form)
        assert not any(" ".join(held_out) in text for held_out in HELD_OUT), form
        assert COLOR in form or KIND in form
    for held_out in HELD_OUT:  # each is new as a whole; what it is made of is not
        assert all(any(piece in form for form in forms) for piece in held_out)


def test_a_document_keeps_to_one_form():
    dataset = DRAWN["scenes:fewshot"]()
    lengths = set()
    for record in (dataset[i] for i in range(40)):
        forms = []
        for shot, sentence in zip(shots(record), record.sentences, strict=True):
            [thing] = shot.scene.objects
            *words, end = sentence.split()
            assert end == "."
            forms.append(tuple({thing.color: COLOR, thing.kind: KIND}.get(word, word) for word in words))
        assert len(set(forms)) == 1
        assert not {*COLORS, *SHAPES, *FINE_THINGS} & set(forms[0])
        assert record.matched == tuple(range(len(forms)))
        lengths.add(len(forms))
    assert lengths == {3, 4, 5, 6}


def test_a_form_says_what_there_is():
    thing = SceneObject("ring", "red", (0, 0, 1, 1), "center")
    assert [written(form, thing) for form in HELD_OUT] == [
        "ring ! red .",
        "no red : ring .",
        "red red or ring .",
        "ring is ? red .",
    ]
