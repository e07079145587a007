"""Original positions: every token where it stands in the prompt without the budget (`positions=original`).

    without a budget    t  v0 v1 v2  n  v3 v4 v5  n  t  t         positions  0 1 2 3 4 5 6 7 8 9 10     (n: a newline)
    what is left        t     v1           v4        t  t         original   0   2       6     9 10,    then 11, ...
                                                                  renumbered 0   1       2     3  4,    then  5, ...

Where a picture begins is known on the host, and where each of its patches stands in it; which of them are left, on the
device alone. So the position of a visual token is a sum: the base of its slot, and the place of its patch.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


def places_in_picture(
    segments: Sequence[Int[np.ndarray, " _"]], patches: int, between: int
) -> tuple[Int[np.ndarray, " M"], int]:
    """Where the patches of a picture stand in the prompt, counted from the first of them; and the length of it all.

    Args:
      segments: flat patch indices in token order, one array for each medium that the picture is in the prompt; negative
        ones are newline tokens.
      patches: `M`. Those that are no tokens, padding, have any place.
      between: tokens of text between two segments.
    """
    places, start = np.zeros(patches, np.int32), 0
    for segment in segments:
        is_patch = segment >= 0
        places[segment[is_patch]] = start + np.flatnonzero(is_patch)
        start += len(segment) + between
    return places, start - between


def base_positions(
    token_ids: Sequence[int], placeholder: int, slots: Sequence[int], spans: Sequence[int]
) -> tuple[Int[np.ndarray, " T"], int]:
    """The positions of the text of a prompt, and of the beginning of its picture for every slot; and the next free one.

    Args:
      token_ids: with one placeholder for each picture.
      slots: that each picture has.
      spans: positions that each picture takes up without the budget.
    """
    is_picture = np.asarray(token_ids) == placeholder
    repeats, widths = np.ones((2, len(is_picture)), np.int32)
    repeats[is_picture], widths[is_picture] = slots, spans
    ends = np.cumsum(widths, dtype=np.int32)
    return np.repeat(ends - widths, repeats), int(widths.sum())


def pad_rows(rows: Sequence[Int[np.ndarray, " _"]], shape: tuple[int, int]) -> Int[np.ndarray, "B T"]:
    """The rows in one array, zeros behind them."""
    padded = np.zeros(shape, np.int32)
    for place, row in zip(padded, rows, strict=False):
        place[: len(row)] = row
    return padded
