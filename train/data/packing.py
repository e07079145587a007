"""Samples of unequal length, several to a static row.

    token_ids   p p i i i a a a | p i i a a | 0 0        a row of T = 15: two samples and padding
    segments    1 1 1 1 1 1 1 1   2 2 2 2 2   3 3        attention stays within a segment; padding is one of its own
    positions   0 1 2 3 4 5 6 7   0 1 2 3 4   0 0        each sample counts from 0
    source      . . 0 1 2 . . .   . 3 4 . .   . .        visual token of the row's own tiles; -1 for text, -2 newline
    pixels      A           |     B                       tiles of the row, in the order of the samples

Packed samples are learned as if each had a row of its own: no token sees another sample, and the first token of a
sample is nobody's target. A sample is never cut by packing. Rows are filled first-fit by grain, which also saves and
restores where it stands.
"""

import dataclasses
from typing import Any

import grain
import numpy as np
from grain.experimental import FirstFitPackIterDataset
from jaxtyping import Float, Int32

from train.data.labels import IGNORED

FEATURES = ("token_ids", "targets", "source", "pixels")


@dataclasses.dataclass(frozen=True)
class RowShape:
    """The static sizes of a row.

    Attributes:
      tokens: T, visual tokens included.
      tiles: tiles of all pictures of the row.
      bins: rows that are filled at the same time; more waste less, and mix samples over a longer stretch.
    """

    tokens: int
    tiles: int
    bins: int = 32


@dataclasses.dataclass(frozen=True)
class Laid:
    """A sample laid out as the model reads it.

    Attributes:
      token_ids: `[T]`, anything at visual slots.
      labels: the id of every token that is learned, `IGNORED` for others, `[T]`; not shifted.
      source: visual token among those of the sample's own tiles, -1 for text, -2 for a newline, `[T]`.
      pixels: tiles of its pictures, `[R, 3, h, w]`.
    """

    token_ids: Int32[np.ndarray, " T"]
    labels: Int32[np.ndarray, " T"]
    source: Int32[np.ndarray, " T"]
    pixels: Float[np.ndarray, "R 3 h w"]

    def fits(self, shape: RowShape) -> bool:
        """Whether an empty row holds it."""
        return len(self.token_ids) <= shape.tokens and len(self.pixels) <= shape.tiles

    def features(self) -> dict[str, np.ndarray]:
        """What grain packs. Targets are shifted: token `t` is asked for token `t + 1`."""
        targets = np.append(self.labels[1:], np.int32(IGNORED))
        return {"token_ids": self.token_ids, "targets": targets, "source": self.source, "pixels": self.pixels}


def pack(samples: grain.IterDataset, shape: RowShape, tokens_per_tile: int, *, seed: int = 0) -> grain.IterDataset:
    """Rows of laid-out samples.

    Args:
      samples: dicts of `Laid.features`, each of which fits an empty row.
      shape: of the rows.
      tokens_per_tile: visual tokens that a tile becomes.
      seed: in which order the rows of a filling are given out.

    Returns:
      Dicts with `token_ids`, `targets`, `source`, `segments`, `positions`, each `[T]`; `pixels [R, 3, h, w]`; and
      `used [2]`, the token and tile slots that hold a sample's.
    """
    lengths = dict.fromkeys(FEATURES, shape.tokens) | {"pixels": shape.tiles}
    padding = {"token_ids": 0, "targets": IGNORED, "source": -1, "pixels": 0}
    packed = FirstFitPackIterDataset(
        samples, length_struct=lengths, num_packing_bins=shape.bins, padding_struct=padding, seed=seed
    )
    return packed.map(lambda row: _finish(row, tokens_per_tile))


def _finish(row: dict[str, Any], tokens_per_tile: int) -> dict[str, np.ndarray]:
    """Names the parts of a packed row, and lets its visual slots point to the row's tiles."""
    segments = row["token_ids_segment_ids"].astype(np.int32)
    tiles = row["pixels_segment_ids"]
    samples = int(segments.max(initial=0))
    first = np.array([0, *(np.searchsorted(tiles[tiles > 0], s) for s in range(1, samples + 1))], np.int32)
    source = np.where(row["source"] >= 0, row["source"] + first[segments] * tokens_per_tile, row["source"])
    return {
        "token_ids": row["token_ids"],
        "targets": row["targets"],
        "source": source.astype(np.int32),
        "segments": np.where(segments == 0, samples + 1, segments).astype(np.int32),
        "positions": row["token_ids_positions"].astype(np.int32),
        "pixels": row["pixels"],
        "used": np.array([np.sum(segments > 0), np.sum(tiles > 0)], np.int32),
    }
