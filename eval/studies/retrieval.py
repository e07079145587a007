"""Recall of photos and captions among each other."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

TOP = (1, 5, 10)


class Ranks(NamedTuple):
    """How many wrong candidates stand before the right one, 0 at best; one that scores the same stands before it.

    Attributes:
      photos: of each caption, the rank of its photo among all photos.
      captions: of each photo, the rank of the first of its own captions among all captions of other photos.
    """

    photos: Int[np.ndarray, " C"]
    captions: Int[np.ndarray, " N"]


def ranks(scores: Float[np.ndarray, "N C"], owners: Int[np.ndarray, " C"]) -> Ranks:
    """Ranks by the scores of all pairs.

    Args:
      owners: of each caption, the number of its photo; every photo has a caption.
    """
    count = np.arange(len(owners))
    of_captions = (scores >= scores[owners, count][None, :]).sum(axis=0) - 1
    own = owners[None, :] == np.arange(len(scores))[:, None]
    first = np.where(own, scores, -np.inf).max(axis=1)
    return Ranks(of_captions, ((scores >= first[:, None]) & ~own).sum(axis=1))


def hits(found: Ranks, owners: Int[np.ndarray, " C"]) -> dict[str, Float[np.ndarray, " N"]]:
    """For every photo, whether its captions are in the top k, and which share of them finds it in the top k.

    Photos are the independent items, five captions of one photo are not: intervals are to be taken over photos.
    """
    number = np.bincount(owners, minlength=len(found.captions))
    result = {}
    for k in TOP:
        result[f"photo to caption, recall@{k}"] = (found.captions < k).astype(float)
        result[f"caption to photo, recall@{k}"] = np.bincount(owners, weights=found.photos < k) / number
    return result
