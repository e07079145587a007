"""What exists in the synthetic world: colours, shapes, words, places, and the records that describe one scene.

Pictures are about 96 pixels a side. Shapes (18 to 27 px) survive being squashed to a 48-pixel base view; handwriting
(8 px) and words (10 px type) do not, so that questions about them need the high-resolution tiles.
"""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import UInt8, UInt16

Split = Literal["train", "test"]

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 40),
    "orange": (250, 140, 25),
    "yellow": (245, 225, 50),
    "green": (40, 165, 65),
    "blue": (45, 85, 225),
    "purple": (150, 50, 185),
    "white": (245, 245, 245),
}
CARD_COLORS = tuple(name for name in COLORS if name != "white")  # a white frame would vanish around white paper
SHAPES = ("circle", "square", "triangle", "cross", "star", "ring")
FINE_THINGS = ("card", "plate", "sign")  # carry one digit, two or three digits, and a word
# Families that differ in one letter, so that the blurred outline of a word does not give it away.
WORDS = (
    *("cat", "can", "cap", "cup", "cow", "dog", "log", "fog", "fox", "box", "bus", "bug"),
    *("bag", "bat", "hat", "ham", "hen", "pen", "pan", "pig", "sun", "key", "egg", "jam"),
)
DIGITS = tuple("0123456789")
PLACES = (
    *("top left", "top center", "top right"),
    *("middle left", "center", "middle right"),
    *("bottom left", "bottom center", "bottom right"),
)

# Label ids for dense supervision; 0 is the background in both. A fine thing too small to be read carries its kind.
COLOR_LABELS = ("background", *COLORS)
CONTENT_LABELS = ("background", *SHAPES, *FINE_THINGS, *DIGITS, *WORDS)
COLOR_IDS = {name: i for i, name in enumerate(COLOR_LABELS)}
CONTENT_IDS = {name: i for i, name in enumerate(CONTENT_LABELS)}
NUM_COLORS = len(COLOR_LABELS)
NUM_CONTENTS = len(CONTENT_LABELS)

COARSE = ("color", "shape", "count", "exists", "where", "what_where")
FINE = ("digit", "digits", "word")
KINDS = COARSE + FINE


@dataclasses.dataclass(frozen=True)
class Difficulty:
    """How crowded scenes are.

    Args:
      shapes: fewest and most coloured shapes, as far as there is room (9 cells in all, 3 in an oblong picture).
      fine: fewest and most things to read (cards, plates, signs), as far as there are corners (4, or 2 ends).
      oblong: fraction of pictures that are 96x48 or 48x96 pixels (half each) instead of 96x96.
      several: whether there may be more than one plate or sign, which questions then tell apart by their colours.
      single: whether the picture is one cell in 48x48 pixels, the size of a tile.
    """

    shapes: tuple[int, int] = (1, 4)
    fine: tuple[int, int] = (1, 2)
    oblong: float = 0.2
    several: bool = False
    single: bool = False


EASY = Difficulty(shapes=(1, 2), fine=(0, 1), oblong=0.0)
MEDIUM = Difficulty(shapes=(1, 3), fine=(1, 1), oblong=0.1)
FULL = Difficulty()
READING = Difficulty(shapes=(0, 2), fine=(2, 4), oblong=0.1, several=True)
SINGLE = Difficulty(shapes=(1, 1), fine=(0, 1), single=True)


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """One thing in the picture.

    Args:
      kind: one of `SHAPES` or `FINE_THINGS`.
      color: a key of `COLORS`.
      box: `(x0, y0, x1, y1)` in pixels, end exclusive.
      place: one of `PLACES`: the third of the picture, in each direction, that holds the centre of the box.
      content: what is written on it ("7", "4 7 2", "cat"); empty for shapes.
      scans: indices of the handwriting scans shown, into scikit-learn's digits.
    """

    kind: str
    color: str
    box: tuple[int, int, int, int]
    place: str
    content: str = ""
    scans: tuple[int, ...] = ()

    @property
    def is_shape(self) -> bool:
        """Whether questions about "shapes" mean this thing."""
        return self.kind in SHAPES


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with its only right answer; `kind` is one of `KINDS`."""

    kind: str
    text: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Scene:
    """A picture, what is in it, and everything that can be asked about it.

    Args:
      image: the picture in sRGB.
      objects: the things drawn; their boxes never overlap.
      questions: all questions that have exactly one answer here, several of a kind where possible.
      labels: per pixel, `color_id * NUM_CONTENTS + content_id` of the thing drawn there, 0 for background.
      kinds: as `labels`, with the kind of a fine thing ("card") in place of what is written on it.
    """

    image: UInt8[np.ndarray, "H W 3"]
    objects: tuple[SceneObject, ...]
    questions: tuple[Question, ...]
    labels: UInt16[np.ndarray, "H W"]
    kinds: UInt16[np.ndarray, "H W"]


def blank(scene: Scene) -> Scene:
    """Returns the scene with a plain grey picture: the control that shows what can be guessed without looking."""
    return dataclasses.replace(scene, image=np.full_like(scene.image, 128))
