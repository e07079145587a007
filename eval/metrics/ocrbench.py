"""OCRBench: an answer is right if it contains a reference. Source: Liu et al., 2023 (arXiv 2305.07895).

Case and line breaks do not matter, except for the formulas of HME100k, where case does and spaces do not. Published
scores are the hits among 1000, ten times the accuracy in per cent.

    lmms_eval    full-width letters of East Asian fonts equal plain ones
    vlmevalkit   they do not

Extras: `dataset`, `question_type`.
"""

from eval.metrics.metric import Answered, mean_metric

# U+FF01 to U+FF5E are the printable ASCII characters in full width, U+3000 is a space as wide.
_HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}


def _plain(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def _formula(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")


def _folded(text: str) -> str:
    return _plain(text.translate(_HALF_WIDTH))


def _contains(sample: Answered, prediction: str, *, fold: bool) -> float:
    form = _formula if sample.extras.get("dataset") == "HME100k" else _folded if fold else _plain
    return float(any(form(reference) in form(prediction) for reference in sample.references))


OCRBENCH = mean_metric(
    "ocrbench",
    {
        "lmms_eval": lambda sample, prediction: _contains(sample, prediction, fold=True),
        "vlmevalkit": lambda sample, prediction: _contains(sample, prediction, fold=False),
    },
    groups=("question_type",),
)
