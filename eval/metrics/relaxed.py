"""Relaxed accuracy: ChartQA. Source: Masry et al., 2022 (arXiv 2203.10244), section 5.1.

A number within 5 % of the right one is right; any other text must be the same, case aside. What is a number is what
Python's `float` reads ("1_000", not "1,000"), and a percent sign divides by 100. A right answer of 0 is compared as
text.

    lmms_eval    texts as they are (pix2struct does the same)
    vlmevalkit   the prediction without space around it

Extras: `type` (human or augmented), after which accuracies are given too.
"""

from eval.metrics.metric import Answered, mean_metric

_TOLERANCE = 0.05


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _right(prediction: str, reference: str) -> bool:
    value, target = _number(prediction), _number(reference)
    if value is not None and target:
        return abs(value - target) / abs(target) <= _TOLERANCE
    return prediction.lower() == reference.lower()


def _any(sample: Answered, prediction: str) -> float:
    return float(any(_right(prediction, reference) for reference in sample.references))


RELAXED = mean_metric(
    "relaxed_accuracy",
    {"lmms_eval": _any, "vlmevalkit": lambda sample, prediction: _any(sample, prediction.strip())},
    groups=("type",),
)
