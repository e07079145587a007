"""POPE: is there such a thing in the picture? Source: Li et al., 2023 (arXiv 2305.10355).

    llava        text up to the first period is no with No, no or not in it, else yes; `yes_ratio` of the answers
    lmms_eval    only a bare yes or no is an answer; others are wrong but missing from recall, and its `yes_ratio` is
                 that of the labels

The quoted number, `f1_of_splits`, is the mean of the F1 of the random, popular and adversarial set. A rate of nothing
at all is 0. References hold yes or no. Extras: `category`, the set.
"""

import math
from collections.abc import Sequence

from eval.metrics import yes_no
from eval.metrics.metric import Answered, Mark, Metric, mean

_OTHER = {"yes": "no", "no": "yes"}


def _marks(samples: Sequence[Answered], variant: str) -> list[Mark]:
    return [_mark(sample, variant) for sample in samples]


def _mark(sample: Answered, variant: str) -> Mark:
    """Parts: true positive, false positive, false negative, yes, category."""
    label = sample.references[0].strip().lower()
    if sample.prediction is None:
        said = _OTHER[label]
    else:
        said = (yes_no.pope_llava if variant == "llava" else yes_no.pope_lmms_eval)(sample.prediction)
    yes = said == "yes"
    missed = said == "no" and label == "yes"
    counted = yes if variant == "llava" else label == "yes"
    parts = (yes and label == "yes", yes and label == "no", missed, counted, sample.extras.get("category", ""))
    return Mark(float(said == label), parts)


def _rate(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _f1(marks: Sequence[Mark]) -> tuple[float, float, float]:
    right, wrong, missed = (sum(mark.parts[i] for mark in marks) for i in range(3))
    precision, recall = _rate(right, right + wrong), _rate(right, right + missed)
    return precision, recall, _rate(2 * precision * recall, precision + recall)


def _combine(marks: Sequence[Mark]) -> dict[str, float]:
    if not marks:
        return {"f1_of_splits": math.nan}
    categories = sorted({mark.parts[4] for mark in marks})
    own = {name: _f1([mark for mark in marks if mark.parts[4] == name])[2] for name in categories}
    precision, recall, f1 = _f1(marks)
    return {
        "f1_of_splits": _rate(sum(own.values()), len(own)),
        "accuracy": mean(marks),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "yes_ratio": _rate(sum(mark.parts[3] for mark in marks), len(marks)),
        **{f"f1/{name}": value for name, value in own.items() if name},
    }


POPE = Metric("pope", ("llava", "lmms_eval"), "llava", "f1_of_splits", 100.0, _marks, _combine)
