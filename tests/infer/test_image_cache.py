"""Pictures that the tower has seen are not shown to it again, and answers are the same."""

import jax
import numpy as np
import pytest

import vila_jax
from tests.infer.checkpoints import photo
from vila_jax.errors import ConfigError
from vila_jax.infer import image_cache
from vila_jax.infer.lru import BoundedCache

WIDE, TALL, SQUARE = photo(33, 71), photo(90, 41), photo(60, 60)
PROMPT = "w5 <image> w6"
OPTIONS = {"max_new_tokens": 6, "ignore_eos": True}


@pytest.fixture
def cached(written) -> vila_jax.Model:
    return vila_jax.from_pretrained(written.folder, dtype="float32", image_cache=2**24)


@pytest.fixture
def towers(monkeypatch) -> list[int]:
    """The numbers of tiles that towers are run over."""
    runs, encode = [], image_cache._encode

    def counted(programs, packed, tiles):
        runs.append(sum(map(len, packed.rows)))
        return encode(programs, packed, tiles)

    monkeypatch.setattr(image_cache, "_encode", counted)
    return runs


def lookups(model) -> tuple[int, int]:
    found = model.engine.phases.images.lookups
    return found.hits, found.misses


def test_a_picture_is_encoded_once_for_all_questions_and_places(model, cached, towers):
    questions = ["w5 <image> w6", "<image>", "w9 w9 w9 <image> w8"]
    answers = [cached.generate(question, [WIDE], **OPTIONS) for question in questions]
    assert towers == [len(cached.preprocessor(WIDE).pixels)]
    assert lookups(cached) == (2, 1)
    assert [answer.usage.cached_images for answer in answers] == [0, 1, 1]
    assert [a.token_ids for a in answers] == [model.generate(q, [WIDE], **OPTIONS).token_ids for q in questions]
    np.testing.assert_allclose(cached.logits(PROMPT, [WIDE]), model.logits(PROMPT, [WIDE]), rtol=0, atol=1e-5)


def test_a_batch_encodes_what_is_new_and_each_picture_once(model, cached, towers):
    cached.generate(PROMPT, [TALL], **OPTIONS)
    batch = {"prompt": ["<image> w7 <image>", "w8", "<image> w9"], "images": [[WIDE, TALL], [], [WIDE]]}
    answers = cached.generate(**batch, **OPTIONS)
    assert towers == [len(cached.preprocessor(image).pixels) for image in (TALL, WIDE)]
    assert lookups(cached) == (2, 2)
    assert [answer.usage.cached_images for answer in answers] == [1, 0, 0]
    assert [a.token_ids for a in answers] == [a.token_ids for a in model.generate(**batch, **OPTIONS)]


def test_budgets_behind_the_tower_share_what_it_says(model, cached):
    specs = ["hired:0.3", "hired:7", "random:5", None, "fastv:0.5,layer=1"]
    for spec in specs:
        answer = cached.generate(PROMPT, [WIDE], budget=spec, **OPTIONS)
        assert answer.token_ids == model.generate(PROMPT, [WIDE], budget=spec, **OPTIONS).token_ids, spec
    assert lookups(cached) == (4, 1)
    image, budget = cached.preprocessor(WIDE), vila_jax.Budget.parse("hired:0.3")
    expected = model.engine.selection(image, budget=budget)
    np.testing.assert_array_equal(cached.engine.selection(image, budget=budget), expected)


def test_a_budget_that_scores_with_something_else_adds_it(model, cached):
    for spec in (None, "hired:0.3", None, "hired:0.3"):
        answer = cached.generate(PROMPT, [WIDE], budget=spec, **OPTIONS)
        assert answer.token_ids == model.generate(PROMPT, [WIDE], budget=spec, **OPTIONS).token_ids
    assert lookups(cached) == (2, 2)
    assert len(cached.engine.phases.images) == 1


@pytest.mark.parametrize("spec", ["tome:0.5", "tower_norm:0.5", "downsample:0.3"])
def test_what_a_budget_changes_in_front_of_the_tower_or_in_it_is_another_picture(model, cached, spec):
    for budget in (None, spec, spec, None):
        answer = cached.generate(PROMPT, [WIDE], budget=budget, **OPTIONS)
        assert answer.token_ids == model.generate(PROMPT, [WIDE], budget=budget, **OPTIONS).token_ids
    assert lookups(cached) == (2, 2)


def test_pixels_of_another_shape_are_another_picture(cached):
    image = cached.preprocessor(SQUARE)
    other = vila_jax.vision.preprocess.ProcessedImage(image.pixels.reshape(1, 3, -1, 28), image.geometry)
    assert other.pixels.tobytes() == image.pixels.tobytes() and other.digest != image.digest


def test_the_least_recently_used_picture_leaves(written, cached, towers):
    cached.features(cached.preprocessor(SQUARE))
    of_square = cached.engine.phases.images.nbytes
    small = vila_jax.from_pretrained(written.folder, dtype="float32", image_cache=2 * of_square)
    squares = [small.preprocessor(photo(60, 60, seed)) for seed in range(3)]
    towers.clear()
    for which in (0, 1, 0, 2, 0, 1):  # 2 pushes 1 out, then 1 pushes 2 out
        small.features(squares[which])
    assert len(towers) == 4 and lookups(small) == (2, 4)
    assert small.engine.phases.images.nbytes == 2 * of_square
    small.engine.phases.images.clear()
    assert small.engine.phases.images.nbytes == len(small.engine.phases.images) == 0


def test_off_is_the_default_and_holds_nothing(model):
    model.generate(PROMPT, [WIDE], **OPTIONS)
    answer = model.generate(PROMPT, [WIDE], **OPTIONS)
    assert answer.usage.cached_images == 0
    assert lookups(model) == (0, 0) and len(model.engine.phases.images) == 0


def test_a_negative_size_is_refused(written):
    with pytest.raises(ConfigError, match="-1 bytes"):
        vila_jax.from_pretrained(written.folder, dtype="float32", image_cache=-1)


def test_fifty_photos_compile_one_set_of_programs(cached, count_compilations):
    sizes = np.random.default_rng(0).integers(20, 120, (50, 2))
    photos = [photo(*size, seed) for seed, size in enumerate(sizes)]
    options = {"budget": "hired:0.2", "max_new_tokens": 2, "ignore_eos": True}
    for _ in range(2):  # the second time from what was kept
        cached.generate(PROMPT, [photos[0]], **options)
    with count_compilations() as count:
        for image in [*photos, *photos[25:]]:
            cached.generate(PROMPT, [image], **options)
    assert count() == 0
    assert lookups(cached) == (1 + 1 + 25, 50)


def test_a_sharded_model_keeps_pictures_too(model, written):
    mesh = vila_jax.dist.mesh.make_mesh({"tensor": 2, "data": 4})
    sharded = vila_jax.from_pretrained(written.folder, dtype="float32", mesh=mesh, image_cache=2**24)
    for images in ([WIDE], [WIDE, TALL], [WIDE, TALL]):
        prompt = "<image> " * len(images) + "w6"
        answer = sharded.generate(prompt, images, **OPTIONS)
        assert answer.token_ids == model.generate(prompt, images, **OPTIONS).token_ids
    assert lookups(sharded) == (3, 2)


def test_of_a_bounded_cache_what_is_too_large_is_not_kept():
    cache = BoundedCache(100, "here")
    cache.put("small", np.zeros(40, np.uint8))
    cache.put("large", np.zeros(101, np.uint8))
    assert "small" in cache and "large" not in cache and cache.nbytes == 40
    cache.put("small", (np.zeros(60, np.uint8), np.zeros(10, np.uint8)))
    assert cache.nbytes == 70
    cache.put("other", np.zeros(31, np.uint8))
    assert [key for key, _ in cache.items()] == ["other"] and jax.tree.leaves(cache.get("small")) == []
