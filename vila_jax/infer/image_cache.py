"""What the tower said of pictures, kept on the device: the same picture is not encoded twice.

    key      what the tower reads: the prepared pixels (bytes, shape, dtype), and what a budget changes inside the tower
    value    `Encoded` of each of the picture's tiles, without padding

A budget behind the tower is no part of the key, so that a picture is encoded once for all of them. Where such a budget
scores with other intermediates than those kept, the picture is encoded again, and from then on all of them are there.
"""

import dataclasses
from collections.abc import Hashable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from vila_jax.infer.lru import BoundedCache
from vila_jax.infer.programs import Programs
from vila_jax.infer.tiles import Packed, Tiles
from vila_jax.infer.vision import Encoded, encode_tiles

Rows = tuple[Encoded, ...]
"""Of every tile of a picture what the tower says of it, without the axis of tiles."""


@dataclasses.dataclass
class Lookups:
    """Pictures that were found since the start, and that were not. The same picture twice in a batch is found once."""

    hits: int = 0
    misses: int = 0


class ImageCache:
    """Runs the tower over those pictures that it has not seen lately.

    Args:
      max_bytes: of device memory; 0 keeps nothing, and looks for nothing.

    Attributes:
      lookups: what was found so far.
    """

    def __init__(self, max_bytes: int):
        self._held: BoundedCache[Hashable, Rows] = BoundedCache(max_bytes, "image_cache")
        self.lookups = Lookups()

    @property
    def nbytes(self) -> int:
        """Of device memory, held now."""
        return self._held.nbytes

    @property
    def is_on(self) -> bool:
        return self._held.max_bytes > 0

    def __len__(self) -> int:
        return len(self._held)

    def clear(self) -> None:
        """Lets go of all pictures."""
        self._held.clear()

    def known(self, tiles: Tiles | None) -> list[bool]:
        """For every picture of a batch whether it is here; counts nothing."""
        if tiles is None or not self.is_on:
            return [] if tiles is None else [False] * len(tiles.images)
        held = map(self._held.peek, _keys(tiles))
        return [rows is not None and _has(rows, tiles.spec.wanted) for rows in held]

    def encode(self, programs: Programs, tiles: Tiles) -> Encoded:
        """What the tower says of all tiles of a batch. Rows that only fill it up hold anything.

        A rehearsal takes all pictures for new ones, and keeps nothing.
        """
        if not self.is_on:
            return _encode(programs, tiles.packed, tiles)
        if programs.is_rehearsal:
            encoded = _encode(programs, tiles.packed, tiles)
            programs.call("tiles apart", take_apart, encoded)
            return encoded
        keys, wanted = _keys(tiles), tiles.spec.wanted
        looked_up = {key: self._held.get(key) for key in keys}
        found = {key: rows for key, rows in looked_up.items() if rows is not None and _has(rows, wanted)}
        missing = [i for i, key in enumerate(keys) if key not in found and key not in keys[:i]]
        self.lookups.hits += len(keys) - len(missing)
        self.lookups.misses += len(missing)
        if missing:
            packed = tiles.repacked(missing)
            encoded = _encode(programs, packed, tiles)
            apart = programs.call("tiles apart", take_apart, encoded)
            for number, own in zip(missing, packed.rows, strict=True):
                found[keys[number]] = self._keep(keys[number], tuple(apart[row] for row in own))
            if len(missing) == len(keys):
                return encoded
        return programs.call(
            "tiles together", put_together, _in_place(tiles.packed, [found[key] for key in keys], wanted)
        )

    def _keep(self, key: Hashable, rows: Rows) -> Rows:
        """Holds what is new of a picture beside the intermediates that are known already."""
        old = self._held.peek(key)
        if old is not None:
            rows = tuple(
                new._replace(intermediates={**own.intermediates, **new.intermediates})
                for own, new in zip(old, rows, strict=True)
            )
        self._held.put(key, rows)
        return rows


def _has(rows: Rows, wanted: Sequence[str]) -> bool:
    return all(name in rows[0].intermediates for name in wanted)


def _keys(tiles: Tiles) -> list[Hashable]:
    """What the tower reads of each picture, in short."""
    shown = tiles.shown
    return [
        (image.digest, tiles.spec.dtype, tiles.spec.reduction, b"" if shown is None else shown[rows].tobytes())
        for image, rows in zip(tiles.images, tiles.packed.rows, strict=True)
    ]


def _encode(programs: Programs, packed: Packed, tiles: Tiles) -> Encoded:
    spec = tiles.spec
    static = {"dtype": spec.dtype, "wanted": spec.wanted, "reduction": spec.reduction}
    return programs.call("vision tower", encode_tiles, packed.pixels, packed.shown, **static)


def _in_place(packed: Packed, pictures: Sequence[Rows], wanted: Sequence[str]) -> Rows:
    """The tiles of all pictures in the rows of a batch; the rows between, which nobody reads, repeat one of them."""
    trimmed = [
        tuple(tile._replace(intermediates={name: tile.intermediates[name] for name in wanted}) for tile in rows)
        for rows in pictures
    ]
    placed = [trimmed[0][0]] * sum(map(len, packed.pixels))
    for own, rows in zip(packed.rows, trimmed, strict=True):
        for row, tile in zip(own, rows, strict=True):
            placed[row] = tile
    return tuple(placed)


def take_apart(graphdef: nnx.GraphDef, state: nnx.State, encoded: Encoded) -> Rows:
    """One `Encoded` for each tile."""
    del graphdef, state
    return tuple(jax.tree.map(lambda x, row=row: x[row], encoded) for row in range(encoded.features.shape[0]))


def put_together(graphdef: nnx.GraphDef, state: nnx.State, rows: Rows) -> Encoded:
    """The inverse of `take_apart`."""
    del graphdef, state
    return jax.tree.map(lambda *parts: jnp.stack(parts), *rows)
