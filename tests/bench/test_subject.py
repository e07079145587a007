"""Requests made for presets: pictures, tiles and tokens as the published models have them. No weights are made."""

import pytest

from vila_jax.bench.presets import PRESETS, preset, preset_preprocessor
from vila_jax.bench.subject import Batch, Case, Subject, random_jpeg
from vila_jax.errors import BudgetError
from vila_jax.hf.load import abstract_model
from vila_jax.infer.engine import Engine
from vila_jax.vision.open import open_image

# name: tiles of a square picture, visual tokens without a budget, with a fifth of them
EXPECTED = {
    "llava-1.5-7b": (1, 576, 115),
    "llava-1.5-13b": (1, 576, 115),
    "llava-next-7b": (5, 2928, 576),  # 2 x 2 tiles and the overview; a newline token behind each of 48 lines
    "vila-7b": (1, 576, 115),
    "vila-13b": (1, 576, 115),
    "vila1.5-3b": (1, 196, 39),
    "vila1.5-8b": (1, 196, 39),
    "nvila-8b": (1, 256, 51),
    "nvila-lite-8b": (1, 121, 24),
    "nvila-1.5b": (1, 256, 51),
    "mid-0.3b": (1, 576, 115),
    "tiny": (1, 16, 3),
}


def subject(name):
    config = preset(name)
    engine = Engine(*abstract_model(config.vlm, "bfloat16"), config, dtype="bfloat16")
    return Subject(name, config, engine, preset_preprocessor(name))


@pytest.mark.parametrize("name", PRESETS)
def test_tiles_and_tokens(name):
    made, (tiles, full, fifth) = subject(name), EXPECTED[name]
    for budget, visual in ((None, full), ("hired:0.2", fifth)):
        batch = Batch(made, Case(1, budget, 64, 2, made.picture_edge))
        [picture] = batch.pictures()
        [count] = batch.layout([picture]).counts
        assert made.engine.planner.tower_tiles(picture.geometry) == len(picture.pixels) == tiles
        assert (count.text, count.visual_kept) == (64, visual)


def test_rows_differ_and_no_word_is_a_placeholder():
    made = subject("tiny")
    batch = Batch(made, Case(3, None, 500, 2, 112))
    requests = batch.requests(batch.pictures())
    placeholder = made.config.image_token_id
    words = [tuple(request.token_ids[1:]) for request in requests]
    assert len(set(words)) == len({request.media[0].pixels.tobytes() for request in requests}) == 3
    assert all(request.token_ids.count(placeholder) == 1 for request in requests)
    assert {token for own in words for token in own} == set(range(128)) - {placeholder}


def test_pictures_are_files_of_their_size():
    assert open_image(random_jpeg(100, 0)).size == (100, 100)
    assert random_jpeg(100, 0) != random_jpeg(100, 1)


def test_budgets_are_refused_before_anything_runs():
    with pytest.raises(BudgetError, match="hired"):
        Batch(subject("tiny"), Case(1, "hierd:0.2", 5, 2, 112))
