"""Pictures seen at several scales (S2, dynamic S2): the feature maps of a picture's tiles become those of its blocks.

The tower sees the tiles of all scales. A block's map is the concatenation, along the width, of one map per scale, each
resized to the block's grid by averaging areas. Which patches a vector averages is a matter of sizes alone, so the host
says it in a table:

    index [I, B, P, S, W]    of picture I: block B, patch P of the block, scale S, at most W patches of that scale, as
                             numbers among all patches of the picture's own tiles, tile after tile; -1 is unused

Blocks and pictures that only fill up a batch have no patches at all and become zeros.

Sources: S2 (arXiv 2403.13043), NVILA (arXiv 2412.04468).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vila_jax.nn.means import mean_rows


def compose(
    features: Float[Array, "R N D"], tiles: Int[Array, "I Q"], index: Int[Array, "I B P S W"]
) -> Float[Array, "I B P E"]:
    """Features of the blocks of every picture, `E = S * D` wide, scale after scale.

    Args:
      features: of all tiles of the batch, `N` patches each.
      tiles: the tiles of every picture, as rows of `features`; padding may point anywhere.
      index: see above.
    """
    composed = _window_means(features, tiles, index)
    return composed.reshape(*index.shape[:3], -1).astype(features.dtype)


def compose_scores(
    scores: Float[Array, "R N P"], tiles: Int[Array, "I Q"], index: Int[Array, "I B M S W"]
) -> Float[Array, "I B N M"]:
    """Scores per head (`N`) of every patch of the tiles -> of every patch of the blocks: the mean over the scales."""
    composed = _window_means(scores.swapaxes(1, 2), tiles, index)
    return composed.mean(axis=3).swapaxes(2, 3).astype(scores.dtype)


def _window_means(
    features: Float[Array, "R N D"], tiles: Int[Array, "I Q"], index: Int[Array, "I B P S W"]
) -> Float[Array, "I B P S D"]:
    """In float32."""
    patches, width = features.shape[1:]
    patch = jnp.maximum(index, 0)
    tile = jnp.take_along_axis(tiles, patch.reshape(len(tiles), -1) // patches, axis=1).reshape(patch.shape)
    rows = jnp.where(index >= 0, tile * patches + patch % patches, -1)
    return mean_rows(features.reshape(-1, width), rows)
