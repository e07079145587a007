"""Average normalised Levenshtein similarity: DocVQA. Source: Biten et al., ICCV 2019 (arXiv 1907.00490), section 4.1.

A similarity of at least one half counts, a lower one is 0. The variant is that of lmms_eval and VLMEvalKit: the
distance is between texts in lower case with single spaces, but it is divided by the length of the raw text in upper
case.
"""

from eval.metrics.metric import Answered, mean_metric

_THRESHOLD = 0.5


def levenshtein(a: str, b: str) -> int:
    """Fewest insertions, deletions and substitutions that turn one text into the other."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        above, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (left != right))
    return row[-1]


def _similarity(prediction: str, reference: str) -> float:
    length = max(len(prediction.upper()), len(reference.upper()))
    distance = levenshtein(*(" ".join(text.lower().split()) for text in (prediction, reference)))
    return 1 - distance / length if length else 1.0


def _anls(sample: Answered, prediction: str) -> float:
    best = max((_similarity(prediction, reference) for reference in sample.references), default=0.0)
    return best if best >= _THRESHOLD else 0.0


ANLS = mean_metric("anls", {"lmms_eval": _anls})
