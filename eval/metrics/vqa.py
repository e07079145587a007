"""Soft accuracy over ten human answers: VQAv2, OK-VQA, TextVQA, VizWiz.

An answer that k of the other nine people gave is min(1, k / 3) right, and the score is the mean over the ten ways of
leaving one person out. Source: https://visualqa.org/evaluation.html and its PythonEvaluationTools/vqaEvaluation.

The variants differ in how texts are normalised before they are compared:

    lmms_eval      always, and periods before digits stay
    vqa_official   not at all where the ten raw answers are identical ("Yes" against ten "yes" is wrong)
    vlmevalkit     always, and periods behind digits stay too

For TextVQA and OK-VQA lmms_eval, like LLaVA's evaluator from M4C, takes commas and question marks away first and splits
off 's.
"""

import re
from collections.abc import Callable, Sequence

from eval.metrics.metric import Answered, mean_metric

_DIGITS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {word: str(n) for n, word in enumerate(_DIGITS.split())}
_NUMBERS["none"] = "0"
_ARTICLES = frozenset({"a", "an", "the"})
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,+(?=\d)")
# The reference means to spare periods beside digits; a mistyped look-behind makes it spare only those before digits.
_PERIOD = re.compile(r"\.(?!\d)")
_PERIOD_BESIDE_NO_DIGIT = re.compile(r"(?<!\d)\.(?!\d)")
_MOST_PERIODS = 32  # the references pass a flag of this value as the count

# Words that are given back their apostrophe. Pronouns with a capital are missing: what is looked up is lower case.
_SHORTENED = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't
it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't
somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's
they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's
where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
# Two apostrophes, of which either may be lost.
_DOUBLY = """
couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've
"""


def _contractions() -> dict[str, str]:
    table = {word.replace("'", ""): word for word in _SHORTENED.split()}
    for word in _DOUBLY.split():
        places = [i for i, character in enumerate(word) if character == "'"]
        table |= {word[:i] + word[i + 1 :]: word for i in places}
    table |= {"yall'd've": "y'all'd've", "somebody'd": "somebodyd"}  # the second as in the reference
    table |= {"ow's'at": "'ow's'at", "'ows'at": "'ow's'at", "'ow'sat": "'ow's'at"}
    return table


_CONTRACTIONS = _contractions()


def _no_punctuation(text: str, period: re.Pattern[str]) -> str:
    glued = _COMMA_IN_NUMBER.search(text) is not None
    out = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if glued or beside_space else " ")
    return period.sub("", out, count=_MOST_PERIODS)


def _words(text: str) -> str:
    """Lower case, numbers as digits, without articles, contractions with their apostrophes."""
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def plain(text: str) -> str:
    """Without line breaks, tabs and space around it."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def normalized(text: str) -> str:
    """An answer as VQA's script compares it."""
    return _words(_no_punctuation(plain(text), _PERIOD))


def m4c_normalized(text: str) -> str:
    """An answer as the evaluator of M4C and TextVQA compares it."""
    return normalized(text.lower().replace(",", "").replace("?", "").replace("'s", " 's"))


def vlmevalkit_normalized(text: str) -> str:
    """An answer as VLMEvalKit compares it."""
    return _words(without_punctuation(plain(text)))


def without_punctuation(text: str) -> str:
    """As VLMEvalKit takes it away: periods beside digits stay."""
    return _no_punctuation(text, _PERIOD_BESIDE_NO_DIGIT)


def soft_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Agreement of a prediction with human answers, all normalised; 0 without answers."""
    number, found = len(answers), sum(answer == prediction for answer in answers)
    if not number:
        return 0.0
    return (found * min(1.0, (found - 1) / 3) + (number - found) * min(1.0, found / 3)) / number


def _compared(normalize: Callable[[str], str]) -> Callable[[Answered, str], float]:
    return lambda sample, prediction: soft_accuracy(normalize(prediction), [normalize(a) for a in sample.references])


def _official(sample: Answered, prediction: str) -> float:
    same = len(set(sample.references)) == 1
    return _compared(plain if same else normalized)(sample, prediction)


VQA = mean_metric(
    "vqa_accuracy",
    {"lmms_eval": _compared(normalized), "vqa_official": _official, "vlmevalkit": _compared(vlmevalkit_normalized)},
)
TEXTVQA = mean_metric(
    "textvqa_accuracy", {"lmms_eval": _compared(m4c_normalized), "vlmevalkit": _compared(vlmevalkit_normalized)}
)
