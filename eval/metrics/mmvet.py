"""MM-Vet: what a judge gave, added up. Source: Yu et al., 2023 (arXiv 2308.02490).

A language model judges every answer from 0 to 1. The judge is not part of this page: an answer that was not judged has
no score, and with one of them there is no `overall`, rather than a wrong one. An answer that failed is 0.

Extras: `judged` (from 0 to 1, None before judging), `capability` (a list, or names joined by commas).
"""

import math
from collections.abc import Sequence

from eval.metrics.metric import Answered, Mark, Metric, mean

CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")


def _marks(samples: Sequence[Answered], variant: str) -> list[Mark]:
    """Parts: names of what the question needs."""
    return [Mark(_score(sample), _capabilities(sample)) for sample in samples]


def _score(sample: Answered) -> float:
    if sample.prediction is None:
        return 0.0
    judged = sample.extras.get("judged")
    return math.nan if judged is None else float(judged)


def _capabilities(sample: Answered) -> tuple[str, ...]:
    needed = sample.extras["capability"]
    names = {name.strip() for name in (needed.split(",") if isinstance(needed, str) else needed)}
    return tuple(sorted(names, key=lambda name: (*CAPABILITIES, name).index(name)))


def _combine(marks: Sequence[Mark]) -> dict[str, float]:
    judged = [mark for mark in marks if not math.isnan(mark.score)]
    single = [name for name in CAPABILITIES if any(name in mark.parts for mark in judged)]
    joined = sorted({mark.parts for mark in judged if mark.parts})
    return {
        "overall": mean(marks) if len(judged) == len(marks) else math.nan,
        "judged": len(judged) / len(marks) if marks else math.nan,
        **{f"capability/{name}": mean([mark for mark in judged if name in mark.parts]) for name in single},
        **{f"integration/{'+'.join(own)}": mean([mark for mark in judged if mark.parts == own]) for own in joined},
    }


MMVET = Metric("mmvet", ("lmms_eval",), "lmms_eval", "overall", 100.0, _marks, _combine)
