"""Reading yes or no from an answer, in the ways of the references."""

from eval.metrics.vqa import without_punctuation

_PREFIX = 4


def pope_llava(text: str) -> str:
    """LLaVA's POPE script: no if one of the words No, no, not stands before the first period, else yes."""
    words = text.split(".", maxsplit=1)[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def pope_lmms_eval(text: str) -> str:
    """lmms_eval's POPE task: the bare word, else other ("Yes." is other)."""
    word = text.lower().strip()
    return word if word in ("yes", "no") else "other"


def mme_lmms_eval(text: str) -> str:
    """lmms_eval's MME task: y or n, or yes or no within the first four characters ("now" is no), else other."""
    word = text.lower().strip().replace(".", "")
    if word in ("y", "n"):
        return {"y": "yes", "n": "no"}[word]
    return next((label for label in ("yes", "no") if label in word[:_PREFIX]), "other")


def vlmevalkit(text: str) -> str:
    """VLMEvalKit: one of yes and no among the words and not the other, else unknown."""
    found = {"yes", "no"} & set(without_punctuation(text.lower()).split())
    return found.pop() if len(found) == 1 else "unknown"
