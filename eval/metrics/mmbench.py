"""MMBench: which option does an answer mean? Source: Liu et al., 2023 (arXiv 2307.06281), section 4.

Every question is asked with its options in several orders, and counts (`circular`) only if all answers are right; rows
of one question have the same `index` modulo one million. `first_pass` looks at the unrotated rows alone. An answer that
no rule can read is wrong: there is no judge here, and nothing is guessed.

    vlmevalkit            a letter among the last words, "answer is B", or the text of one option in a short answer
    lmms_eval_prefetch    a letter with punctuation around it, or the text of one option

References hold the letter. Extras: `index`, `choices` (texts by letter), `category`, `l2-category`.
"""

import re
from collections.abc import Mapping, Sequence

from eval.metrics.metric import Answered, Mark, Metric, mean

_ROTATION = 1_000_000
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_SEPARATORS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_LAST_WORDS = 4
_SAID = re.compile(r"answer\s+is\s+\**([ABCD])", re.IGNORECASE)
_AROUND = "{}. {}, {}: {}) {}). ({}) ({}). :{} :{}, :{}. :{}) :{})."
_ARTICLE_WORDS = 3  # in a longer answer A may be the article


def _only_text(answer: str, choices: Mapping[str, str]) -> str | None:
    """The letter of the only option whose text is part of the answer."""
    found = [letter for letter, text in choices.items() if str(text).lower() in answer.lower()]
    return found[0] if len(found) == 1 else None


def option_vlmevalkit(answer: str, choices: Mapping[str, str]) -> str | None:
    """The letter of an option, `Z` for a refusal, None where the rules do not tell."""
    if any(refusal in answer for refusal in _REFUSALS):
        return "Z"
    words = answer.translate(_SEPARATORS).split()
    letters = [letter for letter in choices if letter in words]
    if len(letters) == 1 and words.index(letters[0]) >= len(words) - _LAST_WORDS:
        return letters[0]
    if not letters and "Z" in words:
        return "Z"
    said = _SAID.search(answer)
    if said and said[1].upper() in choices:
        return said[1].upper()
    short = len(answer) <= 2 * sum(len(str(text)) for text in choices.values())
    return _only_text(answer, choices) if short else None


def option_lmms_eval(answer: str, choices: Mapping[str, str]) -> str | None:
    """The letter of an option (A to E whatever is offered), None where the rules do not tell."""
    words = answer.split()
    for form in ("{}", *_AROUND.split()):
        letters = [letter for letter in "ABCDE" if form.format(letter) in words]
        article = form == "{}" and "A" in words and len(words) > _ARTICLE_WORDS
        if len(letters) == 1 and not article:
            return letters[0]
    return _only_text(answer, choices)


_PARSERS = {"vlmevalkit": option_vlmevalkit, "lmms_eval_prefetch": option_lmms_eval}


def _marks(samples: Sequence[Answered], variant: str) -> list[Mark]:
    """Parts: whether the row stands for its question, whether all rows are right, whether it is unrotated, groups."""
    right = [
        sample.prediction is not None
        and _PARSERS[variant](sample.prediction, sample.extras["choices"]) in sample.references
        for sample in samples
    ]
    indices = [int(sample.extras["index"]) for sample in samples]
    wrong = {index % _ROTATION for index, fine in zip(indices, right, strict=True) if not fine}
    first: dict[int, int] = {}
    for row, index in enumerate(indices):
        first.setdefault(index % _ROTATION, row)
    marks = []
    for row, (sample, index) in enumerate(zip(samples, indices, strict=True)):
        question = index % _ROTATION
        groups = tuple(f"{g}/{sample.extras[g]}" for g in ("l2-category", "category") if sample.extras.get(g))
        parts = (first[question] == row, question not in wrong, index == question, groups)
        marks.append(Mark(float(right[row]), parts))
    return marks


def _combine(marks: Sequence[Mark]) -> dict[str, float]:
    questions = [Mark(float(mark.parts[1]), mark.parts[3]) for mark in marks if mark.parts[0]]
    groups = sorted({group for question in questions for group in question.parts})
    return {
        "circular": mean(questions),
        "first_pass": mean([mark for mark in marks if mark.parts[2]]),
        **{group: mean([question for question in questions if group in question.parts]) for group in groups},
    }


MMBENCH = Metric("mmbench", tuple(_PARSERS), "vlmevalkit", "circular", 100.0, _marks, _combine)
