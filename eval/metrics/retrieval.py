"""Recall of photos and captions among each other.

A caption finds its photo among all photos, and a photo any of its own captions among all captions, within the first k.
A wrong candidate that scores the same stands before the right one, so that a model that says the same of everything
looks as bad as it is. Without ties this is BLIP's `itm_eval` (arXiv 2201.12086).

Extras of a sample, which is a photo: `scores` of the photo with every caption of the corpus, and `captions`, the
numbers of its own. A photo without scores has failed: everything stands before it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from eval.metrics.metric import Answered, Mark, Metric

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


def _marks(samples: Sequence[Answered], variant: str) -> list[Mark]:
    """Score: whether the first caption is right. Parts: per k, hit of the photo and hits of its captions; captions."""
    if not samples:
        return []
    own = [list(sample.extras["captions"]) for sample in samples]
    owners = np.full(sum(map(len, own)), -1)
    for photo, captions in enumerate(own):
        owners[captions] = photo
    scores = np.full((len(samples), len(owners)), -np.inf)
    failed = [sample.extras.get("scores") is None for sample in samples]
    for photo, sample in enumerate(samples):
        if not failed[photo]:
            scores[photo] = sample.extras["scores"]
    found = ranks(scores, owners)
    found.captions[failed] = max(TOP)
    found.photos[np.array(failed)[owners]] = max(TOP)
    return [
        Mark(float(rank < 1), (*((float(rank < k), float((mine < k).sum())) for k in TOP), len(mine)))
        for rank, mine in ((found.captions[photo], found.photos[captions]) for photo, captions in enumerate(own))
    ]


def _combine(marks: Sequence[Mark]) -> dict[str, float]:
    photos, captions = len(marks), sum(mark.parts[-1] for mark in marks)
    if not marks:
        return {"mean_recall": math.nan}
    values = {}
    for place, k in enumerate(TOP):
        values[f"image_to_text_r{k}"] = sum(mark.parts[place][0] for mark in marks) / photos
        values[f"text_to_image_r{k}"] = sum(mark.parts[place][1] for mark in marks) / captions
    return {"mean_recall": sum(values.values()) / len(values), **values}


RETRIEVAL = Metric("retrieval_recall", ("blip",), "blip", "mean_recall", 100.0, _marks, _combine)
