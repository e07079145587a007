"""Captions as rows of word numbers."""

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int32

PAD, UNKNOWN = 0, 1
_WORD = re.compile(r"[^\W_]+")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Numbers of words, from 2 up; 0 pads, 1 is every other word."""

    numbers: Mapping[str, int]

    @property
    def size(self) -> int:
        return len(self.numbers) + 2

    def encode(self, captions: Sequence[str], length: int) -> Int32[np.ndarray, "C W"]:
        """The first `length` words of each caption, padded on the right. A caption without words is one unknown."""
        rows = np.full((len(captions), length), PAD, np.int32)
        for row, caption in zip(rows, captions, strict=True):
            numbers = [self.numbers.get(word, UNKNOWN) for word in words(caption)[:length]] or [UNKNOWN]
            row[: len(numbers)] = numbers
        return rows


def words(caption: str) -> list[str]:
    """Words in lower case, without punctuation."""
    return _WORD.findall(caption.lower())


def vocabulary(captions: Sequence[str], *, least: int = 2) -> Vocabulary:
    """The words that occur at least `least` times, the most frequent first, equals in the order of the alphabet."""
    counts = collections.Counter(word for caption in captions for word in words(caption))
    frequent = sorted((word for word in counts if counts[word] >= least), key=lambda word: (-counts[word], word))
    return Vocabulary({word: i for i, word in enumerate(frequent, start=2)})
