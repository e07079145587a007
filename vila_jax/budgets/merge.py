"""Tokens that stand for several patches: where they come in the sequence, and what they are made of.

A tile can offer three kinds of token. They are numbered, for a bucket of `P` tiles and `M = P * N` patches, by

    m          patch m as it is
    M + m      patch m and what it gathers of its tile
    2 M + p    tile p as a whole: its class token, or what is left of it

and `token_order` says, from the size of a picture alone, which comes before which.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vila_jax.budgets.select import compact
from vila_jax.vision.geometry import TileGeometry


def token_order(geometry: TileGeometry, max_tiles: int, *, whole_first: bool) -> Int[np.ndarray, " places"]:
    """The numbers of all tokens that a picture could have, in token order; -1 fills them up to `2 M + P`.

    A single tile, an overview, and every tile that is a medium of its own: the whole tile (`whole_first`), its patches,
    its gathering patches, the whole tile (else). The tiles of a mosaic follow as in `restore_image_features_sorted` of
    VisionZip: the patches of all, in the order of the mosaic; then the whole tiles; then, tile after tile, the
    gathering patches. Padding has no place.
    """
    per_tile = geometry.patches_per_tile
    patches, first_whole = max_tiles * per_tile, 2 * max_tiles * per_tile
    order = geometry.order()
    tile_of = order // per_tile

    def alone(tile: int) -> Int[np.ndarray, " places"]:
        own, whole = order[tile_of == tile], np.array([first_whole + tile])
        return np.concatenate([whole, own, own + patches] if whole_first else [own, own + patches, whole])

    if geometry.grid is None or geometry.arrangement == "tiles":
        parts = [alone(tile) for tile in dict.fromkeys(tile_of.tolist())]
    else:
        first = int(geometry.has_overview)
        mosaic, tiles = order[tile_of >= first], np.arange(first, geometry.num_tiles)
        parts = [*([alone(0)] if first else []), mosaic, first_whole + tiles, patches + np.sort(mosaic)]
    places = np.full(first_whole + max_tiles, -1, np.int32)
    found = np.concatenate(parts)
    places[: len(found)] = found
    return places


def take(
    kept: Bool[Array, "I P N"],
    gathering: Bool[Array, "I P N"],
    whole: Bool[Array, "I P"],
    order: Int[Array, "I places"],
    slots: int,
) -> tuple[Int[Array, "I K"], Bool[Array, "I K"]]:
    """The numbers of the tokens that there are, in token order, -1 in unused slots; and which slots are used."""
    images = kept.shape[0]
    there = jnp.concatenate([kept.reshape(images, -1), gathering.reshape(images, -1), whole], axis=1)
    return compact(there[:, None, :], order, slots)[:2]


def patch_of(numbers: Int[Array, "I K"], patches: int) -> Int[Array, "I K"]:
    """The patch that a token shows, or that gathers the others; -1 for whole tiles and unused slots."""
    return jnp.where((numbers >= 0) & (numbers < 2 * patches), numbers % patches, -1)


def nearness(
    keys: Float[Array, "I P N W"], candidates: Bool[Array, "I P N"], patch: Int[Array, "I K"]
) -> Float[Array, "I K M"]:
    """Cosine between the keys of some patches and of all candidates of the same tile.

    -inf towards any other patch; what is no number counts as far away (-2).
    """
    images, _, per_tile, width = keys.shape
    flat = keys.astype(jnp.float32).reshape(images, -1, width)
    flat = flat / jnp.linalg.norm(flat, axis=-1, keepdims=True)
    own = jnp.take_along_axis(flat, jnp.maximum(patch, 0)[:, :, None], axis=1)
    cosine = jnp.einsum("IKW,IMW->IKM", own, flat, precision=jax.lax.Precision.HIGHEST)
    tile = jnp.arange(flat.shape[1], dtype=jnp.int32) // per_tile
    same = (patch[:, :, None] // per_tile == tile[None, None]) & (patch[:, :, None] >= 0)
    near = same & candidates.reshape(images, 1, -1)
    return jnp.where(near, jnp.where(jnp.isnan(cosine), -2.0, cosine), -jnp.inf)


def group_weights(
    patch: Int[Array, "I K"], group: Int[Array, "I M"], share: Float[Array, "I M"]
) -> Float[Array, "I K M"]:
    """Weights of tokens when every patch goes, with its `share`, to the token of the patch `group` (-1: to none)."""
    goes = (group[:, None, :] == patch[:, :, None]) & (patch[:, :, None] >= 0)
    return jnp.where(goes, share[:, None, :], 0.0)
