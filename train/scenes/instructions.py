"""Instructions without pictures: counting, sorting, comparing, adding, repeating, in the words of the scenes."""

from collections.abc import Callable

import numpy as np

from train.data.records import Conversation
from train.scenes.conversations import turns_of
from vila_jax.scenes import world
from vila_jax.scenes.world import COLORS, FINE_THINGS, SHAPES

WORDS = ("words", "reverse", "sort", "plus", "minus", "larger", "smaller", "or", "comes", "repeat", "it", "thing")
"""What the instructions need beyond the words of questions and captions."""

_MOST_TURNS = 6
_NAMES = {"color": tuple(COLORS), "shape": SHAPES, "thing": FINE_THINGS, "word": world.WORDS}
_EVERY = tuple(name for names in _NAMES.values() for name in names)

Pair = tuple[str, str]


def instruction(rng: np.random.Generator, record_id: str) -> Conversation:
    """One or more instructions, each with its only right answer."""
    pairs = [TASKS[rng.integers(len(TASKS))](rng) for _ in range(int(rng.integers(1, _MOST_TURNS + 1)))]
    return Conversation(record_id, turns_of(pairs))


def _names(rng: np.random.Generator, most: int = 5) -> list[str]:
    """Two or more different words."""
    return [_EVERY[i] for i in rng.permutation(len(_EVERY))[: int(rng.integers(2, most + 1))]]


def _digits(rng: np.random.Generator, least: int = 2, most: int = 5) -> list[int]:
    """Different digits."""
    return [int(i) for i in rng.permutation(10)[: int(rng.integers(least, most + 1))]]


def _count(rng: np.random.Generator) -> Pair:
    names = _names(rng, most=7)
    return f"How many words are there : {' '.join(names)} ?", str(len(names))


def _repeat(rng: np.random.Generator) -> Pair:
    names = _names(rng)
    return f"Repeat : {' '.join(names)} .", " ".join(names)


def _reverse(rng: np.random.Generator) -> Pair:
    names = _names(rng, most=4)
    return f"Reverse : {' '.join(names)} .", " ".join(reversed(names))


def _first(rng: np.random.Generator) -> Pair:
    names = _names(rng)
    which, answer = (("first", names[0]), ("last", names[-1]))[rng.integers(2)]
    return f"Which word comes {which} : {' '.join(names)} ?", answer


def _sort(rng: np.random.Generator) -> Pair:
    digits = _digits(rng)
    return f"Sort : {' '.join(map(str, digits))} .", " ".join(map(str, sorted(digits)))


def _compare(rng: np.random.Generator) -> Pair:
    a, b = _digits(rng, most=2)
    which, answer = (("larger", max(a, b)), ("smaller", min(a, b)))[rng.integers(2)]
    return f"Which is {which} : {a} or {b} ?", str(answer)


def _calculate(rng: np.random.Generator) -> Pair:
    a, b = (int(x) for x in rng.integers(10, size=2))
    if rng.integers(2):
        return f"How many is {a} plus {b} ?", " ".join(str(a + b))
    return f"How many is {max(a, b)} minus {min(a, b)} ?", str(abs(a - b))


def _sort_of_thing(rng: np.random.Generator) -> Pair:
    kinds = list(_NAMES)
    kind, asked = kinds[rng.integers(4)], kinds[rng.integers(3)]  # every name is a word
    name = _NAMES[kind][rng.integers(len(_NAMES[kind]))]
    return f"Is {name} a {asked} ?", "yes" if kind == asked else "no"


TASKS: tuple[Callable[[np.random.Generator], Pair], ...] = (
    *(_count, _repeat, _reverse, _first),
    *(_sort, _compare, _calculate, _sort_of_thing),
)
"""Each draws an instruction and its answer."""
