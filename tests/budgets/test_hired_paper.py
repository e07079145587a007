"""HiRED, `variant=paper`: Eq. 1 and Eq. 2, the budget filled exactly."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from vila_jax.budgets import Step, capacity, make_plan, select_tokens, stack_plans, total_tokens
from vila_jax.budgets.hired import sum_regions
from vila_jax.vision.geometry import TileGeometry

NEXT = ["1x2_336x672", "1x3_300x700", "2x2_480x640", "2x2_672x672", "3x1_1100x336"]
SIDE, TILES = 6, 5
N = SIDE**2


def kept(budget, geometries, content, score, max_tiles=TILES, patches=N):
    """Kept flat indices of each picture, in token order."""
    plan = stack_plans([make_plan(budget, geometry, max_tiles) for geometry in geometries])
    inputs = {"content": jnp.asarray(content), "score": jnp.asarray(score)}
    indices, valid, _ = select_tokens(budget, inputs, plan, capacity(budget, max_tiles, patches))
    return [np.asarray(i)[np.asarray(v)] for i, v in zip(indices, valid, strict=True)]


@pytest.mark.parametrize("name", NEXT)
def test_equation_1(golden, name):
    """Without padding each tile gets the floor of its share, or one more for the largest remainders."""
    data = np.load(golden / "budgets" / f"hired_next_{name}.npz")
    grid = tuple(data["grid_hw"].tolist())
    geometry = TileGeometry(24, (336 * grid[0], 336 * grid[1]), grid)  # fills its mosaic
    assert geometry.real().all()
    first, last = data["first_layer_cls_headsum"][None], data["last_layer_cls_headsum"][None]
    region = jnp.asarray(geometry.regions()[None])
    shares = np.asarray(sum_regions(jnp.asarray(first[:, 0]), region, geometry.num_tiles - 1), np.float64)[0]
    for key in (key for key in data if key.endswith("_paper_eq1_sub_budgets")):
        rate, alpha = re.match(r"r(.*)_a(.*)_paper", key).groups()
        total, overview, rest = data[key.replace("paper_eq1_sub_budgets", "budget_total_full_sub")].tolist()
        quotas = shares / shares.sum() * rest
        np.testing.assert_array_equal(np.floor(quotas), data[key])
        expected = data[key].copy()
        expected[np.argsort(expected - quotas)[: rest - expected.sum()]] += 1
        overflow = np.maximum(expected - 576, 0).sum()
        budget = Step.parse(f"hired:{rate},alpha={alpha}")
        (tokens,) = kept(budget, [geometry], first, last, geometry.num_tiles, 576)
        counts = np.bincount(tokens // 576, minlength=geometry.num_tiles)
        assert counts.sum() == total
        if not overflow:
            assert counts.tolist() == [overview, *expected.tolist()], key


def test_equation_2():
    """Each tile keeps its best real patches; tokens come in the order of the geometry."""
    rng = np.random.default_rng(1)
    geometry = TileGeometry(SIDE, (300, 700), (2, 2))
    content, score = rng.random((2, 1, TILES, N), np.float32)
    (tokens,) = kept(Step.parse("hired:0.3"), [geometry], content, score)
    order = geometry.order().tolist()
    assert tokens.tolist() == sorted(tokens.tolist(), key=order.index)
    for tile in range(TILES):
        real = np.flatnonzero(geometry.real()[tile])
        mine = tokens[tokens // N == tile] - tile * N
        best = sorted(real, key=lambda patch: -score[0, tile, patch])[: len(mine)]
        assert sorted(mine.tolist()) == sorted(int(b) for b in best)


def random_geometry(rng):
    grid = [None, (1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (2, 2), (1, 4), (4, 1)][rng.integers(9)]
    return TileGeometry(SIDE, tuple(int(n) for n in np.exp(rng.uniform(0, 7, 2)).astype(int)), grid)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("keep", ["0.05", "0.4", "0.9", "30"])
def test_budget_is_filled_exactly(alpha, keep):
    """For any size of picture: exactly the total, real patches only, none twice; the overview at least its part."""
    rng = np.random.default_rng(2)
    budget = Step.parse(f"hired:{keep},alpha={alpha}")
    geometries = [random_geometry(rng) for _ in range(40)]
    content, score = rng.random((2, 40, TILES, N), np.float32) ** 8  # steep, so that caps are met
    for geometry, tokens in zip(geometries, kept(budget, geometries, content, score), strict=True):
        total = total_tokens(budget, geometry)
        assert len(tokens) == len(set(tokens.tolist())) == total
        assert set(tokens.tolist()) <= set(geometry.order().tolist())
        part = total if geometry.grid is None else min(int(total * alpha), N)
        overview, tiles = (tokens < N).sum(), geometry.num_tiles - 1
        room = geometry.real()[1:].sum()
        assert overview == part if tiles and total - part <= room else overview == total - min(room, total - part)


def test_content_of_other_tiles_is_not_read():
    rng = np.random.default_rng(3)
    geometry = TileGeometry(SIDE, (100, 100), (2, 2))
    content, score = rng.random((2, 1, TILES, N), np.float32)
    (tokens,) = kept(Step.parse("hired:0.3"), [geometry], content, score)
    content[:, 1:] = np.nan
    (again,) = kept(Step.parse("hired:0.3"), [geometry], content, score)
    assert tokens.tolist() == again.tolist()
