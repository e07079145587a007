"""How many tokens a budget keeps."""

import pytest

from vila_jax.budgets import Step, capacity, tokens_of_tile, total_tokens
from vila_jax.errors import BudgetError
from vila_jax.vision.geometry import TileGeometry

SINGLE = TileGeometry(24, (336, 336))
SQUARE = TileGeometry(24, (672, 672), (2, 2))
PADDED = TileGeometry(24, (480, 640), (2, 2))  # 6 rows of 48 cut off above and below
THIN = TileGeometry(24, (1, 1000), (1, 3))  # the picture is thinner than a patch: the tiles hold only padding
TOME, NUMBER = Step.parse("tome:0.4"), Step.parse("tome:100")


@pytest.mark.parametrize(
    ("spec", "geometry", "total"),
    [
        ("hired:0.2", SINGLE, 115),
        ("hired:0.2", SQUARE, 576),
        ("hired:0.2", PADDED, 576),
        ("hired:1", PADDED, 576 + 36 * 48),
        ("hired:0.9", PADDED, 576 + 36 * 48),
        ("random:0.9", PADDED, 576 + 36 * 48),
        ("hired:0.9,variant=code", PADDED, 2592),
        ("hired:1,variant=code", PADDED, 2880),
        ("hired:0.5", THIN, 576),
        (
            "hired:0.29",
            TileGeometry(10, (140, 140)),
            28,
        ),  # 100 * 0.29 is 28.999999999999996: truncated in double precision
        ("hired:0.0001", SINGLE, 1),
        ("hired:115", SQUARE, 115),
        ("hired:2304", PADDED, 2304),
    ],
)
def test_total(spec, geometry, total):
    assert total_tokens(Step.parse(spec), geometry) == total


@pytest.mark.parametrize(
    ("spec", "geometry", "available"),
    [("hired:577", SINGLE, 576), ("hired:2305", PADDED, 2304), ("random:2305", PADDED, 2304), ("hired:577", THIN, 576)],
)
def test_more_than_there_are(spec, geometry, available):
    with pytest.raises(BudgetError, match=f"has only {available}"):
        total_tokens(Step.parse(spec), geometry)


def test_code_counts_padding_as_available():
    assert total_tokens(Step.parse("hired:2880,variant=code"), PADDED) == 2880
    with pytest.raises(BudgetError, match="has only 2880"):
        total_tokens(Step.parse("hired:2881,variant=code"), PADDED)


def test_capacity():
    assert capacity(Step.parse("hired:0.2"), 5, 576) == 576
    assert capacity(Step.parse("hired:115"), 5, 576) == 115
    assert capacity(Step.parse("hired:0.001"), 1, 100) == 1
    assert capacity(Step.parse("hired:1"), 5, 576) == 2880
    with pytest.raises(BudgetError, match=r"3000 visual tokens, but 5 tile\(s\) has only 2880"):
        capacity(Step.parse("hired:3000"), 5, 576)


@pytest.mark.parametrize("spec", ["hired:0.1", "hired:0.29", "hired:1", "hired:0.7,variant=code", "hired:40"])
@pytest.mark.parametrize("max_tiles", [1, 3, 4, 5])
def test_capacity_holds_every_picture(spec, max_tiles):
    budget = Step.parse(spec)
    grids = [None, (1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (2, 2)]
    geometries = [TileGeometry(10, (90, 70), grid) for grid in grids]
    totals = [total_tokens(budget, g) for g in geometries if g.num_tiles <= max_tiles]
    assert max(totals) <= capacity(budget, max_tiles, 100)


@pytest.mark.parametrize(
    ("spec", "geometry", "tower", "total"),
    [
        (TOME, SINGLE, TOME, 230),
        (TOME, SQUARE, TOME, 5 * 230),
        (NUMBER, SQUARE, NUMBER, 500),  # a number counts the tokens of one tile
        (Step.parse("random:0.5"), SQUARE, TOME, 5 * 230 // 2),
        (Step.parse("random:17"), SQUARE, TOME, 17),
        (TOME, THIN, TOME, 230),  # no tile but the overview shows anything
        (Step.parse("random:0.9"), THIN, TOME, 230),
    ],
)
def test_behind_a_step_inside_the_tower(spec, geometry, tower, total):
    assert total_tokens(spec, geometry, tower) == total
    assert total <= capacity(spec, geometry.num_tiles, 576, tower)


def test_a_tile_leaves_its_part_and_no_more_than_it_has():
    assert tokens_of_tile(None, 576) == 576
    assert tokens_of_tile(TOME, 576) == 230 and tokens_of_tile(TOME, 1) == 1
    with pytest.raises(BudgetError, match="577 visual tokens, but a tile has only 576"):
        tokens_of_tile(Step.parse("tome:577"), 576)
    with pytest.raises(BudgetError, match="1151 visual tokens, but a picture of 5 tile"):
        total_tokens(Step.parse("random:1151"), SQUARE, TOME)
