"""One right answer, compared as a whole: plain exact match, and GQA.

lmms_eval    GQA without case and ASCII punctuation; white space counts
llava        GQA's own script, behind LLaVA's conversion: lower case, and without periods at the end
vlmevalkit   GQA without case and space around it
"""

import string
from collections.abc import Callable

from eval.metrics.metric import Answered, mean_metric

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _any(
    of_prediction: Callable[[str], str], of_reference: Callable[[str], str] | None = None
) -> Callable[[Answered, str], float]:
    """Whether any reference equals the prediction, each brought to its form."""
    reference = of_reference or of_prediction
    return lambda sample, prediction: float(of_prediction(prediction) in {reference(r) for r in sample.references})


def _plain(text: str) -> str:
    """Without case, repeated spaces and a final full stop."""
    return " ".join(text.lower().strip().removesuffix(".").split())


def _no_punctuation(text: str) -> str:
    # NULs at the end go because the reference compares arrays of numpy, which pads with them.
    return text.lower().translate(_NO_PUNCTUATION).rstrip("\0")


EXACT_MATCH = mean_metric("exact_match", {"vila_jax": _any(_plain)}, groups=("kind",))
GQA = mean_metric(
    "gqa_exact_match",
    {
        "lmms_eval": _any(_no_punctuation),
        "llava": _any(lambda text: text.rstrip(".").lower(), lambda text: text),
        "vlmevalkit": _any(lambda text: text.strip().lower()),
    },
)
