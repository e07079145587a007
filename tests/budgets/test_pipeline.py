"""What holds for every method: exact counts, independence of the batch, one compilation a bucket."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vila_jax.budgets import (
    METHODS,
    Step,
    TokenMethod,
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
SPECS = [
    "hired:0.3",
    "hired:12,alpha=0.7",
    "fastervlm:0.3",
    "vispruner:0.3",
    "vispruner:11,ratio=0.3",
    "hiprune:0.3",
    "hiprune:12,alpha=0.9,variant=code",
    "divprune:0.3",
    "cdpruner:0.3",
    "cdpruner:12,relevance=none",
    "prumerge:0.3",
    "prumerge:12,sort=score,neighbours=3",
    "prumerge+:0.3",
    "prumerge+:12,top=2,stride=5",
    "visionzip:0.3",
    "visionzip:12,contextual=0.5",
    "learned:0.3",
    "learned:12,per_tile=true",
    "norm:0.3,which=low",
    "random:0.3",
    "random:12,seed=5",
    "uniform:0.3",
    "pool:0.3",
    "pool:12",
]
"""Every method of the stage `tokens`; a line each, in the order of the registry."""
PLACE_BLIND = [
    "hired:0.3",
    "fastervlm:0.3",
    "vispruner:0.3",
    "divprune:0.3",
    "cdpruner:0.3",
    "norm:0.3,which=low",
]
"""Those of them whose choice within a tile does not depend on where in it a patch is."""
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
    token_methods = {name for name, method in METHODS.items() if issubclass(method, TokenMethod)}
    assert {Step.parse(spec).method for spec in SPECS} == token_methods


def run(step, geometries, inputs, num_images=None):
    plan = stack_plans([make_plan(step, g, TILES, salt=i) for i, g in enumerate(geometries)], num_images)
    return jax.device_get(select(step, inputs, plan, capacity(step, TILES, N)))


def some_inputs(step, images, tiles=TILES, seed=0):
    """What the step reads, of the shapes that the tower gives it."""
    rng = np.random.default_rng(seed)
    widths = {"keys": (N, 2, 3), "features": (N, 6), "projected": (N, 5), "class_token": (1, 6)}
    names = required_intermediates(step, CLIP, 23)
    shapes = {role: (images, tiles, *widths.get(name.partition("/")[0], (N,))) for role, name in names.items()}
    return {role: rng.random(shape, np.float32) for role, shape in shapes.items()}


def part(inputs, *index):
    return {role: values[index] for role, values in inputs.items()}


values = st.sampled_from([0.0, 1.0, float("nan"), float("inf"), float("-inf")]) | st.floats(width=32)


def any_inputs(step, data):
    """As `some_inputs` of 6 pictures, of at most four values that hypothesis draws."""
    palette = data.draw(st.lists(values, min_size=1, max_size=4))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    return {
        role: np.array(palette, np.float32)[rng.integers(len(palette), size=value.shape)]
        for role, value in some_inputs(step, 6).items()
    }


@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=15, deadline=None)
@given(st.data())
def test_exactly_the_total_for_any_scores(spec, data):
    """NaN, infinities, ties and constants included; tokens are distinct and real, kept patches in token order.

    The indices of merged tokens name the patch that stands for each; a token may do without one.
    """
    step = Step.parse(spec)
    indices, valid, weights = run(step, GEOMETRIES, any_inputs(step, data))
    for geometry, row, used in zip(GEOMETRIES, indices, valid, strict=True):
        total = total_tokens(step, geometry)
        assert used.tolist() == [True] * total + [False] * (len(row) - total)
        assert (row[total:] == -1).all()
        order = geometry.order().tolist()
        places = [order.index(i) for i in row[:total] if weights is None or i >= 0]
        assert len(set(places)) == len(places)
        assert weights is not None or (places == sorted(places) and len(places) == total)


@pytest.mark.parametrize("spec", [*SPECS, "hired:0.3,variant=code"])
def test_a_row_does_not_depend_on_its_batch(spec):
    step = Step.parse(spec)
    inputs = some_inputs(step, 6)
    together = run(step, GEOMETRIES, inputs)
    for i, geometry in enumerate(GEOMETRIES):
        plan = stack_plans([make_plan(step, geometry, TILES, salt=i)])
        alone = jax.device_get(select(step, part(inputs, slice(i, i + 1)), plan, capacity(step, TILES, N)))
        assert alone.indices[0].tolist() == together.indices[i].tolist()
        assert alone.valid[0].tolist() == together.valid[i].tolist()
        if alone.weights is not None:
            used = alone.valid[0]
            np.testing.assert_allclose(alone.weights[0][used], together.weights[i][used], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spec", [*SPECS, "hired:0.3,variant=code"])
def test_tile_bucket_changes_nothing(spec):
    step, geometry = Step.parse(spec), GEOMETRIES[5]
    inputs, rows = some_inputs(step, 1), []
    for bucket in (geometry.num_tiles, TILES):
        plan = stack_plans([make_plan(step, geometry, bucket, salt=4)])
        own = part(inputs, slice(None), slice(bucket))
        indices, valid, _ = jax.device_get(select(step, own, plan, capacity(step, bucket, N)))
        rows.append(indices[valid].tolist())
    assert rows[0] == rows[1] != []


@pytest.mark.parametrize("spec", [spec for spec in SPECS if Step.parse(spec).token_method.nested])
@settings(max_examples=5, deadline=None)
@given(st.data())
def test_a_smaller_budget_is_part_of_a_larger_one(spec, data):
    """Of methods that promise it: tile by tile, wherever the larger budget does not give a tile less."""
    small = Step.parse(spec)
    large = Step(small.method, 0.6, small.options)
    inputs = any_inputs(small, data)
    smaller, larger = (run(step, GEOMETRIES, inputs) for step in (small, large))
    assert smaller.valid.sum() < larger.valid.sum()
    for less, more in zip(smaller.indices, larger.indices, strict=True):
        for tile in range(TILES):
            few, many = ({i for i in row if i // N == tile} for row in (less, more))
            assert few <= many or len(few) > len(many)


@pytest.mark.parametrize("spec", PLACE_BLIND)
def test_patches_in_another_order_are_the_same_patches(spec):
    """On a single tile, where no patch is told from another but by what the tower says of it."""
    step, places = Step.parse(spec), np.random.default_rng(1).permutation(N)
    inputs = some_inputs(step, 6)
    moved = {role: values[:, :, places] if values.shape[2] == N else values for role, values in inputs.items()}
    as_they_are, elsewhere = (run(step, GEOMETRIES[:1] * 6, own) for own in (inputs, moved))
    for here, there in zip(as_they_are.indices, elsewhere.indices, strict=True):
        assert sorted(here) == sorted(places[i] if i >= 0 else -1 for i in there)


@pytest.mark.parametrize("spec", [*SPECS, "hired:0.3,variant=code"])
def test_missing_pictures_keep_nothing(spec):
    step = Step.parse(spec)
    inputs = some_inputs(step, 4)
    indices, valid, _ = run(step, GEOMETRIES[:2], inputs, num_images=4)
    assert not valid[2:].any() and (indices[2:] == -1).all()
    plan = stack_plans([make_plan(step, GEOMETRIES[0], TILES)], 3)
    assert (plan.order[1:] == -1).all() and not plan.candidates[1:].any() and plan.total[1:].tolist() == [0, 0]
    fewer = run(step, GEOMETRIES[:2], part(inputs, slice(2)))
    assert indices[:2].tolist() == fewer.indices.tolist()


@pytest.mark.parametrize("spec", [*SPECS, "hired:0.35,variant=code"])
def test_one_compilation_for_all_pictures_of_a_bucket(spec, count_compilations):
    step, rng = Step.parse(spec), np.random.default_rng(7)
    with count_compilations() as count:
        for i in range(50):
            grid = [None, (1, 2), (2, 1), (1, 3), (3, 1), (2, 2)][i % 6]
            size = tuple(int(n) for n in rng.integers(1, 900, 2))
            plan = stack_plans([make_plan(step, TileGeometry(SIDE, size, grid), TILES, salt=i)])
            inputs = some_inputs(step, 1, seed=i)
            jax.block_until_ready(select(step, inputs, plan, capacity(step, TILES, N)))
        assert count() <= 1  # none, where another test has compiled it


def test_a_picture_larger_than_its_bucket():
    with pytest.raises(ValueError, match="5 tiles does not fit in a bucket of 4"):
        make_plan(Step.parse("hired:0.3"), GEOMETRIES[1], 4)


def test_intermediates():
    assert required_intermediates(Step.parse("hired:0.2"), CLIP, 23) == {
        "content": "cls_attention/0",
        "score": "cls_attention/22",
    }
    named = required_intermediates(Step.parse("hired:0.2,first_layer=-23,score_layer=5"), CLIP, 23)
    assert named == {"content": "cls_attention/0", "score": "cls_attention/5"}
    assert required_intermediates(Step.parse("random:0.2"), SIGLIP, 26) == {}


@pytest.mark.parametrize("option", ["first_layer=23", "score_layer=-24"])
def test_block_that_does_not_exist(option):
    with pytest.raises(BudgetError, match=f"option {option.split('=')[0]}.*23 blocks.*0 to 22.*-23 to -1"):
        required_intermediates(Step.parse(f"hired:0.2,{option}"), CLIP, 23)


def test_tower_without_class_token():
    """The attention that patches receive stands in the place of the class token's."""
    names = required_intermediates(Step.parse("hired:0.2"), SIGLIP, 26)
    assert names == {"content": "received_attention/0", "score": "received_attention/25"}
