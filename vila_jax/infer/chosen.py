"""What a budget made of the patches of one picture, for those who want to look at it."""

import dataclasses

import numpy as np
from jaxtyping import Int

from vila_jax.budgets import Selection
from vila_jax.vision.geometry import TileGeometry


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The tokens of one picture, `K` of `M` patches, in token order.

    Attributes:
      indices: flat index of the patch that a token shows, or of the one that stands for those merged in it; -1 where
        none does.
      tiles: the tile that each token comes from.
      clusters: for every patch the token in which it weighs most, -1 where it is in none. Of tokens that are patches
        each has its own.
    """

    indices: Int[np.ndarray, " K"]
    tiles: Int[np.ndarray, " K"]
    clusters: Int[np.ndarray, " M"]

    @classmethod
    def of_patches(cls, indices: Int[np.ndarray, " K"], geometry: TileGeometry) -> "Chosen":
        """Tokens that are patches."""
        clusters = np.full(geometry.num_tiles * geometry.patches_per_tile, -1)
        clusters[indices] = np.arange(len(indices))
        return cls(indices, indices // geometry.patches_per_tile, clusters)

    def only(self, tokens: Int[np.ndarray, " L"]) -> "Chosen":
        """Some of the tokens, by their numbers."""
        number = np.full(len(self.indices) + 1, -1)  # the last entry is that of no token
        number[tokens] = np.arange(len(tokens))
        return Chosen(self.indices[tokens], self.tiles[tokens], number[self.clusters])

    @classmethod
    def of_selection(cls, selection: Selection, geometry: TileGeometry, max_tiles: int) -> "Chosen":
        """The first picture of a selection; it has this geometry, in a bucket of `max_tiles`."""
        used = np.asarray(selection.valid[0])
        indices = np.asarray(selection.indices[0])[used]
        if selection.weights is None:
            return cls.of_patches(indices, geometry)
        weights = np.asarray(selection.weights[0])[used]
        patches, classes = np.split(weights, [max_tiles * geometry.patches_per_tile], axis=1)
        patches = patches[:, : geometry.num_tiles * geometry.patches_per_tile]
        by_tile = patches.reshape(len(patches), geometry.num_tiles, -1).sum(axis=2)
        if classes.size:
            by_tile += classes[:, : geometry.num_tiles]
        clusters = np.where(patches.max(axis=0, initial=0.0) > 0, patches.argmax(axis=0), -1)
        return cls(indices, by_tile.argmax(axis=1), clusters)
