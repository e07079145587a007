"""MME: two questions with yes or no about every picture. Source: Fu et al., 2023 (arXiv 2306.13394).

A category scores 100 times its accuracy plus 100 times the share of pictures with both answers right. Perception is the
sum of ten categories (2000 at best), cognition that of four (800); papers quote perception.

    lmms_eval     yes or no within the first four characters
    vlmevalkit    one of the two among the words

References hold yes or no. Extras: `category`, `question_id` (the picture).
"""

import collections
import math
from collections.abc import Sequence

from eval.metrics import yes_no
from eval.metrics.metric import Answered, Mark, Metric, mean

COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
_READERS = {"lmms_eval": yes_no.mme_lmms_eval, "vlmevalkit": yes_no.vlmevalkit}


def _marks(samples: Sequence[Answered], variant: str) -> list[Mark]:
    """Parts: category, and whether all answers about the picture are right."""
    right = [_right(sample, variant) for sample in samples]
    pictures = [(sample.extras["category"], sample.extras["question_id"]) for sample in samples]
    wrong = {picture for picture, fine in zip(pictures, right, strict=True) if not fine}
    return [
        Mark(float(fine), (picture[0], picture not in wrong)) for picture, fine in zip(pictures, right, strict=True)
    ]


def _right(sample: Answered, variant: str) -> bool:
    label = sample.references[0].lower().strip().removesuffix(".")
    return sample.prediction is not None and _READERS[variant](sample.prediction) == label


def _combine(marks: Sequence[Mark]) -> dict[str, float]:
    groups = collections.defaultdict(list)
    for mark in marks:
        groups[mark.parts[0]].append(mark)
    scores = {
        name: 100 * mean(own) + 100 * sum(mark.parts[1] for mark in own) / len(own) for name, own in groups.items()
    }
    return {
        "perception": _sum(scores, PERCEPTION),
        "cognition": _sum(scores, COGNITION),
        **{f"category/{name}": scores[name] for name in sorted(scores)},
    }


def _sum(scores: dict[str, float], names: Sequence[str]) -> float:
    """NaN where no category of these was asked."""
    asked = [scores[name] for name in names if name in scores]
    return math.fsum(asked) if asked else math.nan


MME = Metric("mme", tuple(_READERS), "lmms_eval", "perception", 1.0, _marks, _combine)
