"""From a selection on the device to what is drawn: the tile of every token, and the token of every patch."""

import numpy as np

from vila_jax.budgets import Selection
from vila_jax.infer.chosen import Chosen
from vila_jax.vision.geometry import TileGeometry

GEOMETRY = TileGeometry(2, (20, 10), (2, 1))  # three tiles of four patches, in a bucket of four


def test_patches():
    selection = Selection(np.array([[1, 6, -1]]), np.array([[True, True, False]]))
    chosen = Chosen.of_selection(selection, GEOMETRY, 4)
    assert chosen.indices.tolist() == [1, 6] and chosen.tiles.tolist() == [0, 1]
    assert np.flatnonzero(chosen.clusters >= 0).tolist() == [1, 6] and chosen.clusters[[1, 6]].tolist() == [0, 1]


def test_merged():
    """A class token, a patch with half of its neighbour, what is left of a tile, and an unused slot."""
    weights = np.zeros((1, 4, 16 + 4), np.float32)
    weights[0, 0, 16 + 1] = 1
    weights[0, 1, [4, 5]] = 1, 0.5
    weights[0, 2, [5, 8, 9]] = 0.2, 0.3, 0.3
    weights[0, 3] = 9
    selection = Selection(np.array([[-1, 4, -1, -1]]), np.array([[True, True, True, False]]), weights)
    chosen = Chosen.of_selection(selection, GEOMETRY, 4)
    assert chosen.indices.tolist() == [-1, 4, -1] and chosen.tiles.tolist() == [1, 1, 2]
    assert chosen.clusters.tolist() == [-1, -1, -1, -1, 1, 1, -1, -1, 2, 2, -1, -1]
