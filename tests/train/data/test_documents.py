"""Interleaved documents and captions against those of the reference, by its main branch and by the older one."""

import json

import numpy as np
import pytest

from tests.train.data.forms import golden_forms
from train.data.documents import caption_tokens, document_tokens, picture_order
from train.data.labels import IGNORED
from vila_jax.errors import PromptError


@pytest.fixture(scope="module")
def forms(golden):
    return golden_forms(golden)


@pytest.mark.parametrize(("branch", "name"), [("main", "sentencepiece"), ("vila15", "old")])
def test_samples_of_the_reference(golden, forms, branch, name):
    folder, form, seen = golden / "vila" / "data", forms[name], []
    inputs = json.loads((folder / "interleaved_main.json").read_text())
    for record in json.loads((folder / f"interleaved_{branch}.json").read_text())["records"]:
        kind, _, number = record["case"].removeprefix(f"{branch}_").partition("_")
        number, _, option = number.partition("_")
        if kind == "coyo":
            made = [caption_tokens(form, caption) for caption in inputs["coyo_inputs"][int(number)]]
        else:
            document = inputs["mmc4_inputs"][int(number)]
            only = option == "image_following_text_only"
            made = [
                document_tokens(form, document["text_list"], document["matched_text_index"], behind_pictures_only=only)
            ]
            assert np.sum(made[0][0] == form.image_id) == record["num_images"]
        seen.append(kind)
        for (ids, targets), expected, labels in zip(made, record["input_ids"], record["labels"], strict=True):
            assert ids.tolist() == expected, record["case"]
            # the reference lets pictures stand in its labels until they are spliced in
            assert targets.tolist() == [IGNORED if i == form.image_id else i for i in labels], record["case"]
    assert seen.count("mmc4") == 6 and seen.count("coyo") == 1


def test_pictures_stand_in_the_order_of_their_sentences():
    assert picture_order([2, 0, 2, 1]) == [1, 3, 0, 2]
    assert picture_order([5, 3, 1, 0, 4, 2, 0, 0]) == [3, 2, 5, 1, 4, 0]  # the last two are beyond six


def test_tiles_of_a_picture(forms):
    form = forms["bytelevel_bpe"]
    ids, targets = document_tokens(form, ["a b", "c d"], [1, 0], segments=lambda picture: picture + 2)
    assert np.flatnonzero(ids == form.image_id).size == 5 and np.all(targets[ids == form.image_id] == IGNORED)


def test_bad_documents(forms):
    with pytest.raises(PromptError, match="no sentence"):
        document_tokens(forms["old"], [], [])
    with pytest.raises(PromptError, match="sentence 3, but there are 2"):
        document_tokens(forms["old"], ["a", "b"], [3])
    with pytest.raises(PromptError, match="empty"):
        caption_tokens(forms["old"], "  ")
