"""BLEU, ROUGE-L and CIDEr of captions against several references each, as pycocoevalcap computes them.

Sources: Papineni et al., ACL 2002; Lin, ACL 2004 workshop; Vedantam et al., 2015 (arXiv 1411.5726), section 3, with the
Gaussian penalty on length of CIDEr-D. CIDEr weighs words by their frequency in the references of all pictures: a part
of a data set is not comparable with the whole, and one picture alone scores 0. Tables show it times 100.
"""

import collections
import math
from collections.abc import Mapping, Sequence

from eval.metrics.metric import Answered, Mark, Metric
from eval.metrics.ptb import tokenize

_ORDERS = range(1, 5)  # of n-grams
_TINY, _SMALL = 1e-15, 1e-9  # what pycocoevalcap adds above and below the line of a BLEU precision
_RECALL_WEIGHT = 1.2  # beta of ROUGE-L
_LENGTH_SIGMA = 6.0
_NO_PARTS = (0,) * (3 + 2 * len(_ORDERS))  # of a sample that could not even be read

Words = list[str]
Grams = collections.Counter[tuple[str, ...]]


def _grams(words: Words, order: int) -> Grams:
    return collections.Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))


def bleu_counts(prediction: Words, references: Sequence[Words]) -> tuple[int, ...]:
    """Length, length of the closest reference, n-grams of every order, and those of them in a reference."""
    closest = min((abs(len(own) - len(prediction)), len(own)) for own in references)[1]
    guessed = [max(0, len(prediction) - order + 1) for order in _ORDERS]
    correct = []
    for order in _ORDERS:
        most: Grams = collections.Counter()
        for own in references:
            most |= _grams(own, order)
        correct.append((_grams(prediction, order) & most).total())
    return (len(prediction), closest, *guessed, *correct)


def bleu(counts: Sequence[int]) -> list[float]:
    """BLEU-1 to BLEU-4 of counts, which may be sums over a corpus."""
    length, closest, *rest = counts
    guessed, correct = rest[: len(_ORDERS)], rest[len(_ORDERS) :]
    ratio = (length + _TINY) / (closest + _SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    found, product = [], 1.0
    for order, right, all_ in zip(_ORDERS, correct, guessed, strict=True):
        product *= (right + _TINY) / (all_ + _SMALL)
        found.append(product ** (1 / order) * penalty)
    return found


def _common(a: Words, b: Words) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for j, other in enumerate(b, start=1):
            before, row[j] = row[j], before + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]


def rouge_l(prediction: Words, references: Sequence[Words]) -> float:
    """F-measure of the longest common subsequence, best precision and best recall over the references."""
    if not prediction:
        return 0.0
    common = [_common(prediction, own) for own in references]
    precision = max(common) / len(prediction)
    recall = max(n / len(own) if own else 0.0 for n, own in zip(common, references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + _RECALL_WEIGHT**2) * precision * recall / (recall + _RECALL_WEIGHT**2 * precision)


def cider(predictions: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr-D of every picture, from 0 to 10; document frequencies are those of `references`."""
    frequency: Grams = collections.Counter()
    for own in references:
        frequency.update({gram for words in own for order in _ORDERS for gram in _grams(words, order)})
    documents = math.log(len(references)) if references else 0.0

    def vectors(words: Words) -> list[dict[tuple[str, ...], float]]:
        return [
            {gram: n * (documents - math.log(max(1, frequency[gram]))) for gram, n in _grams(words, order).items()}
            for order in _ORDERS
        ]

    scores = []
    for words, own in zip(predictions, references, strict=True):
        ours = vectors(words)
        similar = [_similarity(ours, vectors(other), len(words), len(other)) for other in own]
        scores.append(10 * sum(similar) / len(similar))
    return scores


def _similarity(
    ours: Sequence[Mapping[tuple[str, ...], float]],
    others: Sequence[Mapping[tuple[str, ...], float]],
    length: int,
    other_length: int,
) -> float:
    """Mean over the orders of the clipped cosine, times the penalty on length."""
    # The reference measures lengths in pairs of words, of which a text of one word has as many as an empty one.
    apart = max(length - 1, 0) - max(other_length - 1, 0)
    total = 0.0
    for own, other in zip(ours, others, strict=True):
        norms = math.sqrt(sum(v * v for v in own.values())) * math.sqrt(sum(v * v for v in other.values()))
        product = sum(min(value, other[gram]) * other[gram] for gram, value in own.items() if gram in other)
        total += product / norms if norms else product
    return total / len(ours) * math.exp(-(apart**2) / (2 * _LENGTH_SIGMA**2))


def _marks(samples: Sequence[Answered], variant: str) -> list[Mark]:
    """Score: CIDEr. Parts: ROUGE-L, and the counts of BLEU. A failed sample has an empty caption."""
    predictions = [tokenize(sample.prediction or "").split() for sample in samples]
    references = [[tokenize(text).split() for text in sample.references] for sample in samples]
    scores = cider(predictions, references)
    return [
        Mark(score, (rouge_l(words, own), *bleu_counts(words, own)))
        for score, words, own in zip(scores, predictions, references, strict=True)
    ]


def _combine(marks: Sequence[Mark]) -> dict[str, float]:
    if not marks:
        return {"CIDEr": math.nan}
    count = len(marks)
    similar, *counts = (sum(column) for column in zip(*(mark.parts or _NO_PARTS for mark in marks), strict=True))
    return {
        "CIDEr": sum(mark.score for mark in marks) / count,
        "ROUGE_L": similar / count,
        **{f"Bleu_{n}": value for n, value in zip(_ORDERS, bleu(counts), strict=True)},
    }


CAPTIONS = Metric("captions", ("pycocoevalcap",), "pycocoevalcap", "CIDEr", 100.0, _marks, _combine)
