"""What holds for every method: exact counts, independence of the batch, one compilation a bucket."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vila_jax.budgets import (
    METHODS,
    Budget,
    capacity,
    make_plan,
    required_intermediates,
    select_tokens,
    stack_plans,
    total_tokens,
)
from vila_jax.errors import BudgetError
from vila_jax.nn.config import VisionConfig
from vila_jax.vision.geometry import TileGeometry

SIDE, TILES = 4, 5
N = SIDE**2
ROLES = ("content", "score")
SPECS = ["hired:0.3", "hired:12,alpha=0.7", "random:0.3", "random:12,seed=5"]
GEOMETRIES = [
    TileGeometry(SIDE, (50, 80)),
    TileGeometry(SIDE, (100, 100), (2, 2)),
    TileGeometry(SIDE, (60, 100), (2, 2)),
    TileGeometry(SIDE, (33, 100), (1, 3)),
    TileGeometry(SIDE, (500, 7), (3, 1)),
    TileGeometry(SIDE, (50, 99), (1, 2)),
]
CLIP = VisionConfig("clip", 32, 64, 24, 2, 336, 14, "quick_gelu", 1e-5)
SIGLIP = VisionConfig("siglip", 32, 64, 24, 2, 384, 14, "gelu_tanh", 1e-6)

select = jax.jit(select_tokens, static_argnums=(0, 3))


def test_every_method_is_tested():
    assert {Budget.parse(spec).method for spec in SPECS} == set(METHODS)


def run(budget, geometries, scores, num_images=None):
    plan = stack_plans([make_plan(budget, g, TILES, salt=i) for i, g in enumerate(geometries)], num_images)
    inputs = {role: scores[..., i] for i, role in enumerate(ROLES)}
    return jax.device_get(select(budget, inputs, plan, capacity(budget, TILES, N)))


def some_scores(images, seed=0):
    return np.random.default_rng(seed).random((images, TILES, N, len(ROLES)), np.float32)


values = st.sampled_from([0.0, 1.0, float("nan"), float("inf"), float("-inf")]) | st.floats(width=32)


@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=15, deadline=None)
@given(st.data())
def test_exactly_the_total_for_any_scores(spec, data):
    """NaN, infinities, ties and constants included; tokens are distinct, real, in token order."""
    budget = Budget.parse(spec)
    palette = data.draw(st.lists(values, min_size=1, max_size=4))
    picks = np.random.default_rng(data.draw(st.integers(0, 99))).integers(len(palette), size=(6, TILES, N, 2))
    indices, valid = run(budget, GEOMETRIES, np.array(palette, np.float32)[picks])
    for geometry, row, used in zip(GEOMETRIES, indices, valid, strict=True):
        total = total_tokens(budget, geometry)
        assert used.tolist() == [True] * total + [False] * (len(row) - total)
        assert (row[total:] == -1).all()
        order = geometry.order().tolist()
        places = [order.index(i) for i in row[:total]]
        assert places == sorted(set(places)) and len(places) == total


@pytest.mark.parametrize("spec", [*SPECS, "hired:0.3,variant=code"])
def test_a_row_does_not_depend_on_its_batch(spec):
    budget, scores = Budget.parse(spec), some_scores(6)
    together = run(budget, GEOMETRIES, scores)
    for i, geometry in enumerate(GEOMETRIES):
        plan = stack_plans([make_plan(budget, geometry, TILES, salt=i)])
        inputs = {role: scores[i : i + 1, ..., j] for j, role in enumerate(ROLES)}
        alone = jax.device_get(select(budget, inputs, plan, capacity(budget, TILES, N)))
        assert alone.indices[0].tolist() == together.indices[i].tolist()
        assert alone.valid[0].tolist() == together.valid[i].tolist()


@pytest.mark.parametrize("spec", [*SPECS, "hired:0.3,variant=code"])
def test_tile_bucket_changes_nothing(spec):
    budget, scores = Budget.parse(spec), some_scores(1)
    geometry = GEOMETRIES[5]
    rows = []
    for bucket in (geometry.num_tiles, TILES):
        inputs = {role: scores[:, :bucket, :, j] for j, role in enumerate(ROLES)}
        plan = stack_plans([make_plan(budget, geometry, bucket, salt=4)])
        indices, valid = jax.device_get(select(budget, inputs, plan, capacity(budget, bucket, N)))
        rows.append(indices[valid].tolist())
    assert rows[0] == rows[1] != []


@pytest.mark.parametrize("spec", [*SPECS, "hired:0.3,variant=code"])
def test_missing_pictures_keep_nothing(spec):
    budget, scores = Budget.parse(spec), some_scores(4)
    indices, valid = run(budget, GEOMETRIES[:2], scores, num_images=4)
    assert not valid[2:].any() and (indices[2:] == -1).all()
    plan = stack_plans([make_plan(budget, GEOMETRIES[0], TILES)], 3)
    assert (plan.order[1:] == -1).all() and not plan.candidates[1:].any() and plan.total[1:].tolist() == [0, 0]
    fewer = run(budget, GEOMETRIES[:2], scores[:2])
    assert indices[:2].tolist() == fewer.indices.tolist()


@pytest.mark.parametrize("spec", ["hired:0.35", "hired:0.35,variant=code", "hired:9", "random:0.35"])
def test_one_compilation_for_all_pictures_of_a_bucket(spec, count_compilations):
    budget, rng = Budget.parse(spec), np.random.default_rng(7)
    with count_compilations() as count:
        for i in range(50):
            grid = [None, (1, 2), (2, 1), (1, 3), (3, 1), (2, 2)][i % 6]
            size = tuple(int(n) for n in rng.integers(1, 900, 2))
            plan = stack_plans([make_plan(budget, TileGeometry(SIDE, size, grid), TILES, salt=i)])
            inputs = dict(zip(ROLES, rng.random((2, 1, TILES, N), np.float32), strict=True))
            jax.block_until_ready(select(budget, inputs, plan, capacity(budget, TILES, N)))
        assert count() == 1


def test_a_picture_larger_than_its_bucket():
    with pytest.raises(ValueError, match="5 tiles does not fit in a bucket of 4"):
        make_plan(Budget.parse("hired:0.3"), GEOMETRIES[1], 4)


def test_intermediates():
    assert required_intermediates(Budget.parse("hired:0.2"), CLIP, 23) == {
        "content": "cls_attention/0",
        "score": "cls_attention/22",
    }
    named = required_intermediates(Budget.parse("hired:0.2,first_layer=-23,score_layer=5"), CLIP, 23)
    assert named == {"content": "cls_attention/0", "score": "cls_attention/5"}
    assert required_intermediates(Budget.parse("random:0.2"), SIGLIP, 26) == {}


@pytest.mark.parametrize("option", ["first_layer=23", "score_layer=-24"])
def test_block_that_does_not_exist(option):
    with pytest.raises(BudgetError, match=f"option {option.split('=')[0]}.*23 blocks.*0 to 22.*-23 to -1"):
        required_intermediates(Budget.parse(f"hired:0.2,{option}"), CLIP, 23)


def test_tower_without_class_token():
    """The attention that patches receive stands in the place of the class token's."""
    names = required_intermediates(Budget.parse("hired:0.2"), SIGLIP, 26)
    assert names == {"content": "received_attention/0", "score": "received_attention/25"}
