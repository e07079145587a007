"""Samples of unequal length, several to a static row.

    token_ids   p p i i i a a a | p i i a a | 0 0        a row of T = 15: two samples and padding
    segments    1 1 1 1 1 1 1 1   2 2 2 2 2   3 3        attention stays within a segment; padding is one of its own
    positions   0 1 2 3 4 5 6 7   0 1 2 3 4   0 0        each sample counts from 0
    source      . . 0 1 2 . . .   . 3 4 . .   . .        visual token of the row's own tiles; -1 for text, -2 newline
    pixels      A           |     B                       tiles of the row, in the order of the samples

Samples may have more arrays, of their tiles or of their pictures, which are packed beside them; see
`train.data.visual`.

Packed samples are learned as if each had a row of its own: no token sees another sample, and the first token of a
sample is nobody's target. A sample is never cut by packing. Rows are filled first-fit by grain, which also saves and
restores where it stands.
"""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

import grain
import numpy as np
from grain.experimental import FirstFitPackIterDataset
from jaxtyping import Float, Int32

from train.data.labels import IGNORED


class Axis(enum.Enum):
    """What the leading axis of an array of a sample counts."""

    TOKENS = "tokens"
    TILES = "tiles"
    PICTURES = "pictures"


AXES: Mapping[str, Axis] = {
    "token_ids": Axis.TOKENS,
    "targets": Axis.TOKENS,
    "source": Axis.TOKENS,
    "pixels": Axis.TILES,
}
"""The arrays that every sample has."""

PADDING = {"targets": IGNORED, "source": -1, "shown": True, "plan.order": -1, "scale_index": -1}
PADDING |= dict.fromkeys(("colors", "contents", "present"), IGNORED)
"""What fills slots that no sample uses, where it is not 0."""


@dataclasses.dataclass(frozen=True)
class RowShape:
    """The static sizes of a row.

    Attributes:
      tokens: T, visual tokens included.
      tiles: tiles of all pictures of the row.
      bins: rows that are filled at the same time; more waste less, and mix samples over a longer stretch.
      pictures: of the row, where there are arrays of pictures; None for as many as tiles.
    """

    tokens: int
    tiles: int
    bins: int = 32
    pictures: int | None = None

    def slots(self, axis: Axis) -> int:
        """Slots along an axis."""
        pictures = self.tiles if self.pictures is None else self.pictures
        return {Axis.TOKENS: self.tokens, Axis.TILES: self.tiles, Axis.PICTURES: pictures}[axis]


@dataclasses.dataclass(frozen=True)
class Laid:
    """A sample laid out as the model reads it.

    Attributes:
      token_ids: `[T]`, anything at visual slots.
      labels: the id of every token that is learned, `IGNORED` for others, `[T]`; not shifted.
      source: visual token in the sample's own part of the table, -1 for text, -2 for a newline, `[T]`.
      pixels: tiles of its pictures, `[R, 3, h, w]`.
      extras: more arrays by name, of its tiles or of its pictures.
    """

    token_ids: Int32[np.ndarray, " T"]
    labels: Int32[np.ndarray, " T"]
    source: Int32[np.ndarray, " T"]
    pixels: Float[np.ndarray, "R 3 h w"]
    extras: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def fits(self, shape: RowShape) -> bool:
        """Whether an empty row holds it."""
        pictures = len(self.extras.get("first_tile", ()))
        return (
            len(self.token_ids) <= shape.tokens
            and len(self.pixels) <= shape.tiles
            and pictures <= shape.slots(Axis.PICTURES)
        )

    def features(self) -> dict[str, np.ndarray]:
        """What grain packs. Targets are shifted: token `t` is asked for token `t + 1`."""
        targets = np.append(self.labels[1:], np.int32(IGNORED))
        own = {"token_ids": self.token_ids, "targets": targets, "source": self.source, "pixels": self.pixels}
        return own | dict(self.extras)


def pack(
    samples: grain.IterDataset,
    shape: RowShape,
    tokens_per_unit: int,
    *,
    unit: Axis = Axis.TILES,
    axes: Mapping[str, Axis] = AXES,
    seed: int = 0,
) -> grain.IterDataset:
    """Rows of laid-out samples.

    Args:
      samples: dicts of `Laid.features`, each of which fits an empty row.
      shape: of the rows.
      tokens_per_unit: rows of the table of visual tokens that a tile, or a picture, takes.
      unit: whether that table goes by tiles or by pictures.
      axes: the features, and what their leading axes count.
      seed: in which order the rows of a filling are given out.

    Returns:
      Dicts with `token_ids`, `targets`, `source`, `segments`, `positions`, each `[T]`; `pixels [R, 3, h, w]`;
      `used [2]`, the token and tile slots that hold a sample's; and the further features.
    """
    lengths = {name: shape.slots(axis) for name, axis in axes.items()}
    padding = {name: PADDING.get(name, 0) for name in axes}
    packed = FirstFitPackIterDataset(
        samples, length_struct=lengths, num_packing_bins=shape.bins, padding_struct=padding, seed=seed
    )
    return packed.map(lambda row: _finish(row, tokens_per_unit, unit, axes))


def _finish(row: dict[str, Any], tokens_per_unit: int, unit: Axis, axes: Mapping[str, Axis]) -> dict[str, np.ndarray]:
    """Names the parts of a packed row, and lets its visual slots point to the row's table."""
    segments = row["token_ids_segment_ids"].astype(np.int32)
    samples = int(segments.max(initial=0))
    firsts = {
        axis: _firsts(row[f"{name}_segment_ids"], samples)
        for name, axis in (("pixels", Axis.TILES), ("first_tile", Axis.PICTURES))
        if name in axes
    }
    source = np.where(row["source"] >= 0, row["source"] + firsts[unit][segments] * tokens_per_unit, row["source"])
    finished = {name: row[name] for name in axes} | {
        "source": source.astype(np.int32),
        "segments": np.where(segments == 0, samples + 1, segments).astype(np.int32),
        "positions": row["token_ids_positions"].astype(np.int32),
        "used": np.array([np.sum(segments > 0), np.sum(row["pixels_segment_ids"] > 0)], np.int32),
    }
    if "first_tile" in axes:
        first_tile = row["first_tile"] + firsts[Axis.TILES][row["first_tile_segment_ids"]]
        finished["first_tile"] = first_tile.astype(np.int32)
    return finished


def _firsts(segments: np.ndarray, samples: int) -> np.ndarray:
    """The first slot of every sample by its number; 0 for padding, which has number 0."""
    used = segments[segments > 0]
    return np.array([0, *(np.searchsorted(used, s) for s in range(1, samples + 1))], np.int32)
