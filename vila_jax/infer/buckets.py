"""Static sizes: numbers that vary from request to request are rounded up to one of a few, each compiled once.

Lengths of rows are rounded by `vila_jax.text.slots`.
"""

import math
from collections.abc import Sequence


def count_bucket(count: int) -> int:
    """Rows of a batch, or pictures: powers of two."""
    return 1 << max(count - 1, 0).bit_length()


def tile_bucket(counts: Sequence[int], max_tiles: int) -> int:
    """Tiles of all pictures of a batch, of which each has `counts[i]`.

    One picture is given the most tiles that the model cuts pictures into, so that all pictures share one program; for
    many, the real number is rounded up by at most a quarter.
    """
    total = sum(counts)
    if len(counts) == 1:
        return max(total, max_tiles)
    step = max(1, 1 << max((total - 1).bit_length() - 3, 0))
    return max(math.ceil(total / step) * step, max_tiles)


def tiles_reserved(counts: Sequence[int], max_tiles: int) -> int:
    """Tiles reserved for each picture: as many as the model ever makes, or a single one where all make do with it."""
    return max_tiles if max(counts) > 1 else 1
