"""What a batch of packed rows holds, counted on the host before it goes to the device."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Counts(NamedTuple):
    """Of the rows of one host.

    Attributes:
      tokens: slots of the rows that hold a token, visual ones included.
      token_slots: that there are.
      tiles: slots that hold a tile of a picture.
      tile_slots: that there are.
      visual: tokens that come out of the projector.
      lengths: tokens of every sample; no token sees another sample.
    """

    tokens: int
    token_slots: int
    tiles: int
    tile_slots: int
    visual: int
    lengths: tuple[int, ...]

    @property
    def samples(self) -> int:
        return len(self.lengths)


def count(batch: Mapping[str, Any]) -> Counts:
    """Counts a batch of `train.data.packing.pack`, with any axes in front: rows, or parts and rows."""
    used = np.asarray(batch["used"]).reshape(-1, 2)
    segments = np.asarray(batch["segments"])
    segments = segments.reshape(-1, segments.shape[-1])
    lengths = [
        int(length) for row, (tokens, _) in zip(segments, used, strict=True) for length in _lengths(row[:tokens])
    ]
    pixels = batch["pixels"]
    return Counts(
        tokens=int(used[:, 0].sum()),
        token_slots=segments.size,
        tiles=int(used[:, 1].sum()),
        tile_slots=int(np.prod(pixels.shape[:-3])),
        visual=int(np.sum(np.asarray(batch["source"]) >= 0)),
        lengths=tuple(lengths),
    )


def _lengths(segments: np.ndarray) -> np.ndarray:
    """How often each segment comes; a row begins with what is used of it."""
    return np.unique(segments, return_counts=True)[1]
