"""ScienceQA: the letter of an option. Source: Lu et al., 2022 (arXiv 2209.09513).

    llava       "B", "B. text", or one "The answer is B." (the last character may be any); options A to E
    lmms_eval   "B" or "b" with space around it, or anything that begins with "B."

References hold the letter. Extras: `choices`.
"""

import re

from eval.metrics.metric import Answered, mean_metric

_LETTERS = "ABCDE"
_PHRASE = re.compile(r"The answer is ([A-Z]).")


def _llava(sample: Answered, prediction: str) -> float:
    letter = ""
    if len(prediction) == 1 and prediction in _LETTERS:
        letter = prediction
    elif len(prediction) >= 3 and prediction[0] in _LETTERS and prediction[1:3] == ". ":
        letter = prediction[0]
    elif len(found := _PHRASE.findall(prediction)) == 1:
        letter = found[0]
    offered = _LETTERS[: len(sample.extras["choices"])]
    return float(letter != "" and letter in offered and letter in sample.references)


def _lmms_eval(sample: Answered, prediction: str) -> float:
    text = prediction.strip()
    if len(text) >= 2 and text[0].isupper() and text[1] == ".":
        return float(text[0] in sample.references)
    return float(text.lower() in {reference.lower() for reference in sample.references})


SCIENCEQA = mean_metric("scienceqa", {"llava": _llava, "lmms_eval": _lmms_eval})
