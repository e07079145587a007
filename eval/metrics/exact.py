"""One right answer, compared as a whole: plain exact match, and GQA.

    vila_jax      exact match without case, repeated spaces and a final full stop
    lmms_eval     GQA without case and ASCII punctuation; white space counts
    llava         GQA's own script, behind LLaVA's conversion: lower case, and without periods at the end
    vlmevalkit    GQA without case and space around it

Extras of exact match: `kind`, after which accuracies are given too.
"""

import string
from collections.abc import Callable

from eval.metrics.metric import Answered, mean_metric
from vila_jax.scenes.questions import exact_match

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _any(
    of_prediction: Callable[[str], str], of_reference: Callable[[str], str] | None = None
) -> Callable[[Answered, str], float]:
    """Whether any reference equals the prediction, each brought to its form."""
    reference = of_reference or of_prediction
    return lambda sample, prediction: float(of_prediction(prediction) in {reference(r) for r in sample.references})


def _no_punctuation(text: str) -> str:
    # NULs at the end go because the reference compares arrays of numpy, which pads with them.
    return text.lower().translate(_NO_PUNCTUATION).rstrip("\0")


def _same_words(sample: Answered, prediction: str) -> float:
    return float(any(exact_match(prediction, reference) for reference in sample.references))


EXACT_MATCH = mean_metric("exact_match", {"vila_jax": _same_words}, groups=("kind",))
GQA = mean_metric(
    "gqa_exact_match",
    {
        "lmms_eval": _any(_no_punctuation),
        "llava": _any(lambda text: text.rstrip(".").lower(), lambda text: text),
        "vlmevalkit": _any(lambda text: text.strip().lower()),
    },
)
