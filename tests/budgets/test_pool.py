"""Average pooling: against torch where its windows are regular, against plain means elsewhere."""

import itertools

import numpy as np
import pytest
import torch

from tests.budgets.merging import choose, merged
from vila_jax.budgets import Step, total_tokens
from vila_jax.errors import BudgetError
from vila_jax.vision.geometry import TileGeometry

SIDE = 24
TILE = TileGeometry(SIDE, (336, 336))


def features_of(images, tiles, side=SIDE):
    return np.random.default_rng(0).standard_normal((images, tiles * side**2, 5)).astype(np.float32)


@pytest.mark.parametrize(("count", "window"), [(144, 2), (64, 3), (36, 4), (1, 24)])
def test_as_torch(count, window):
    features = features_of(2, 1)
    chosen = choose(f"pool:{count}" if count > 1 else "pool:0.002", [TILE] * 2, {})
    maps = torch.from_numpy(features).mT.reshape(2, 5, SIDE, SIDE)
    expected = torch.nn.functional.avg_pool2d(maps, window).flatten(2).mT
    assert chosen.valid.all()
    np.testing.assert_allclose(merged(chosen, features), expected, atol=1e-6)


@pytest.mark.parametrize("grid", [5, 7, 10, 17, 23])
def test_any_grid_divides_the_tile(grid):
    """Every patch goes to one cell; the cells are the blocks of rows and columns, as even as can be."""
    features = features_of(1, 1)
    chosen = choose(f"pool:{grid**2}", [TILE], {})
    np.testing.assert_array_equal(np.count_nonzero(chosen.weights[0], axis=0), 1)
    edges = [-(-i * SIDE // grid) for i in range(grid + 1)]
    assert max(np.diff(edges)) - min(np.diff(edges)) <= 1
    maps = features.reshape(SIDE, SIDE, 5)
    spans = [slice(*pair) for pair in itertools.pairwise(edges)]
    expected = [maps[rows, columns].mean((0, 1)) for rows in spans for columns in spans]
    np.testing.assert_allclose(merged(chosen, features)[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("asked", "geometry", "total"),
    [
        (576, TILE, 576),
        (575, TILE, 529),
        (2, TILE, 1),
        (576, TileGeometry(24, (672, 672), (2, 2)), 4 * 11**2 + 9**2),  # 12 x 12 would leave the overview nothing
        (4, TileGeometry(24, (672, 672), (2, 2)), 4),  # fewer than tiles: two by two of the overview
        (100, TileGeometry(4, (60, 100), (2, 2), "blocks"), 64),
        (63, TileGeometry(4, (60, 100), (2, 2), "blocks"), 36),
    ],
)
def test_the_largest_grids_that_the_tokens_pay_for(asked, geometry, total):
    step = Step("pool", min(asked, int(geometry.real().sum())))
    assert total_tokens(step, geometry) == total


def test_padding_is_in_no_mean():
    """Of the 2 x 2 tiles of a wide picture the upper and lower rows are padding."""
    geometry = TileGeometry(4, (50, 100), (2, 2))
    features = features_of(1, 5, side=4)
    features[0, ~geometry.real().reshape(-1)] = np.inf
    chosen = choose("pool:12", [geometry], {})
    assert chosen.valid.sum() == 12  # 2 x 2 of the overview, and of every tile two of four
    finite = np.where(np.isfinite(features), features, 1e9)
    tokens = merged(chosen, finite)[0, :12]
    maps = features.reshape(5, 4, 4, 5)
    np.testing.assert_allclose(tokens[0], maps[0, :2, :2].mean((0, 1)), atol=1e-6)
    # The first row of the mosaic: lower halves of the upper tiles, which are one row of cells.
    for slot, (tile, columns) in enumerate([(1, slice(0, 2)), (1, slice(2, 4)), (2, slice(0, 2)), (2, slice(2, 4))]):
        np.testing.assert_allclose(tokens[4 + slot], maps[tile, 2:, columns].mean((0, 1)), atol=1e-6)


def test_more_tiles_than_tokens():
    with pytest.raises(BudgetError, match=r"4 tiles.*at least a token each, and there are 3"):
        total_tokens(Step("pool", 3), TileGeometry(4, (60, 60), (2, 2), "blocks"))
