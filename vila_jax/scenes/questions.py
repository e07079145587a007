"""Questions about a scene: each has exactly one right answer, short and in lower case."""

import collections
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from vila_jax.scenes.world import COLORS, DIGITS, FINE_THINGS, PLACES, SHAPES, WORDS, Question, SceneObject

PLURALS = {**{shape: f"{shape}s" for shape in SHAPES}, "cross": "crosses"}

# Paraphrases. {a} is an article, {c} a colour, {s} a shape, {t} a thing ("circle", "red card"), {p} a place.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "color": ("What color is the {t}?", "Which color is the {t}?"),
    "shape": ("What shape is {c}?", "Which shape is {c}?"),
    "shape_at": ("What shape is at the {p}?", "Which shape is at the {p}?"),
    "count": ("How many {t} are there?", "How many {t} do you see?"),
    "exists": ("Is there {a} {c} {s}?", "Do you see {a} {c} {s}?"),
    "where": ("Where is the {t}?", "In which place is the {t}?"),
    "what_where": ("What is at the {p}?", "What do you see at the {p}?"),
    "digit": ("What digit is on the {t}?", "Which digit is on the {t}?"),
    "digits": ("Read the plate.", "What digits are on the plate?"),
    "digits_only": ("Read the digits.", "What digits do you see?"),
    "word": ("Read the word.", "Read the sign.", "What word is on the sign?"),
    "digits_of": ("Read the {t}.", "What digits are on the {t}?"),
    "word_of": ("Read the {t}.", "What word is on the {t}?"),
}
# Templates that ask in another way for what a kind of question is about.
_KIND_OF = {"shape_at": "shape", "digits_only": "digits", "digits_of": "digits", "word_of": "word"}

_TOKEN = re.compile(r"[a-z]+|[0-9]|[?.]")


def tokenize(text: str) -> list[str]:
    """Splits a question or answer into lower-case words, single digits and punctuation."""
    return _TOKEN.findall(text.lower())


def _vocabulary() -> tuple[str, ...]:
    """Every token of every template and of everything that can be put in or answered, in a fixed order."""
    templates = re.sub(r"\{.\}", " ", " ".join(text for kind in TEMPLATES.values() for text in kind))
    names = (*COLORS, *SHAPES, *PLURALS.values(), "shapes", *FINE_THINGS, *PLACES, "a an", "yes no")
    return tuple(dict.fromkeys(tokenize(" ".join(("? .", *DIGITS, templates, *names, *WORDS)))))


VOCABULARY = _vocabulary()


def exact_match(prediction: str, answer: str) -> bool:
    """Whether two answers are the same words, disregarding case, spacing and a final full stop."""
    return _normalised(prediction) == _normalised(answer)


def _normalised(text: str) -> str:
    return " ".join(text.lower().strip().removesuffix(".").split())


class _Asker:
    """Writes questions of one scene, choosing among paraphrases at random."""

    def __init__(self, rng: np.random.Generator):
        self._draws: Iterator[float] = iter(())
        self._rng = rng

    def below(self, n: int) -> int:
        """A random integer in [0, n); drawn in blocks, because single draws from a Generator are slow."""
        draw = next(self._draws, None)
        if draw is None:
            self._draws = iter(self._rng.random(64).tolist())
            draw = next(self._draws)
        return int(draw * n)

    def __call__(self, template: str, answer: str, **fields: str) -> Question:
        choices = TEMPLATES[template]
        text = choices[self.below(len(choices))].format(**fields)
        return Question(_KIND_OF.get(template, template), text, answer)


def _once(objects: Iterable[SceneObject], key: Callable[[SceneObject], Any]) -> dict[Any, SceneObject]:
    """Things that alone have their key."""
    groups = collections.defaultdict(list)
    for thing in objects:
        groups[key(thing)].append(thing)
    return {k: group[0] for k, group in groups.items() if len(group) == 1}


def ask(objects: Sequence[SceneObject], rng: np.random.Generator) -> tuple[Question, ...]:
    """All questions that have exactly one answer for these things, each in one of its paraphrases."""
    asker = _Asker(rng)
    shapes = [thing for thing in objects if thing.is_shape]
    questions = [*_attributes(asker, objects, shapes), *_counts(asker, objects, shapes)]
    questions += [*_existence(asker, objects, shapes), *_places(asker, objects), *_readings(asker, objects)]
    return tuple(questions)


def _attributes(asker: _Asker, objects: Sequence[SceneObject], shapes: Sequence[SceneObject]) -> Iterator[Question]:
    for kind, thing in _once(objects, lambda thing: thing.kind).items():
        yield asker("color", thing.color, t=kind)
    for color, thing in _once(shapes, lambda thing: thing.color).items():
        yield asker("shape", thing.kind, c=color)
    for thing in shapes:
        yield asker("shape_at", thing.kind, p=thing.place)


def _counts(asker: _Asker, objects: Sequence[SceneObject], shapes: Sequence[SceneObject]) -> Iterator[Question]:
    yield asker("count", str(len(shapes)), t="shapes")
    colors = collections.Counter(thing.color for thing in shapes)
    kinds = collections.Counter(thing.kind for thing in shapes)
    for color, count in colors.items():
        yield asker("count", str(count), t=f"{color} shapes")
    for kind, count in kinds.items():
        yield asker("count", str(count), t=PLURALS[kind])
    absent = sorted(COLORS.keys() - {thing.color for thing in objects})  # no argument about coloured cards
    yield asker("count", "0", t=f"{absent[asker.below(len(absent))]} shapes")


def _existence(asker: _Asker, objects: Sequence[SceneObject], shapes: Sequence[SceneObject]) -> Iterator[Question]:
    """As many "no" as "yes"; half of the "no" share a colour and a shape with things in the picture where possible."""
    present = list(dict.fromkeys((thing.color, thing.kind) for thing in shapes))
    # A card could pass for a square of its colour, so that pair is never asked for.
    excluded = {*present, *((thing.color, "square") for thing in objects if not thing.is_shape)}
    every = [(color, kind) for color in COLORS for kind in SHAPES if (color, kind) not in excluded]
    colors, kinds = {color for color, _ in present}, {kind for _, kind in present}
    crossed = [pair for pair in every if pair[0] in colors and pair[1] in kinds]
    shared = [pair for pair in every if pair[0] in colors or pair[1] in kinds]
    for color, kind in present:
        yield asker("exists", "yes", a=_article(color), c=color, s=kind)
        pool = (crossed or shared) if asker.below(2) else every
        color, kind = pool[asker.below(len(pool))]  # noqa: PLW2901
        yield asker("exists", "no", a=_article(color), c=color, s=kind)


def _places(asker: _Asker, objects: Sequence[SceneObject]) -> Iterator[Question]:
    for kind, thing in _once(objects, lambda thing: thing.kind).items():
        yield asker("where", thing.place, t=kind)
    for (color, kind), thing in _once(objects, lambda thing: (thing.color, thing.kind)).items():
        yield asker("where", thing.place, t=f"{color} {kind}")
    for thing in objects:
        yield asker("what_where", f"{thing.color} {thing.kind}", p=thing.place)


def _readings(asker: _Asker, objects: Sequence[SceneObject]) -> Iterator[Question]:
    cards = [thing for thing in objects if thing.kind == "card"]
    for card in cards:
        yield asker("digit", card.content, t=f"{card.color} card")
    if len(cards) == 1:
        yield asker("digit", cards[0].content, t="card")
    number = collections.Counter(thing.kind for thing in objects)
    for thing in objects:
        if thing.kind in ("plate", "sign") and number[thing.kind] > 1:
            asked = "digits_of" if thing.kind == "plate" else "word_of"
            yield asker(asked, thing.content, t=f"{thing.color} {thing.kind}")
        elif thing.kind == "plate":
            yield asker("digits", thing.content)
            if not cards:  # else "the digits" could mean those on a card too
                yield asker("digits_only", thing.content)
        elif thing.kind == "sign":
            yield asker("word", thing.content)


def _article(color: str) -> str:
    return "an" if color[0] in "aeiou" else "a"
