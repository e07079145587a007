"""Draws scenes: a grid of 32-pixel cells, at most one thing in each, a pure function of the seed and the split."""

import dataclasses

import numpy as np
from jaxtyping import Float32, UInt16

from vila_jax.scenes import handwriting, sprites
from vila_jax.scenes.questions import ask
from vila_jax.scenes.world import (
    CARD_COLORS,
    COLOR_IDS,
    COLORS,
    CONTENT_IDS,
    FINE_THINGS,
    FULL,
    NUM_CONTENTS,
    PLACES,
    SHAPES,
    WORDS,
    Difficulty,
    Scene,
    SceneObject,
    Split,
)

CELL = 32
_SPLIT_IDS = {"train": 0, "test": 1}
_PAPER = np.array([250, 248, 240], np.float32)
_INK = np.array([15, 15, 25], np.float32)
_SHAPE_SIZES = (18, 28)  # pixels, end exclusive
_MOST_COLORS = 4  # among the shapes of a scene, which leaves two for what can be read and one for "no"
_DIGIT_ADVANCE = 8
_SINGLE, _CENTER = 48, PLACES[4]  # a picture of one cell, and what its only place is called


@dataclasses.dataclass
class _Canvas:
    """The picture under construction; `labels` and `kinds` are those of `Scene`."""

    image: Float32[np.ndarray, "H W 3"]
    labels: UInt16[np.ndarray, "H W"]
    kinds: UInt16[np.ndarray, "H W"]

    def paint(self, x: int, y: int, mask: Float32[np.ndarray, "h w"], color: Float32[np.ndarray, "3"]) -> None:
        """Blends a colour into the picture with the top left corner of its coverage mask at (x, y)."""
        h, w = mask.shape
        region = self.image[y : y + h, x : x + w]
        region += mask[:, :, None] * (color - region)

    def fill(self, box: tuple[int, int, int, int], color: Float32[np.ndarray, "3"]) -> None:
        """Fills a box `(x0, y0, x1, y1)` with one colour."""
        x0, y0, x1, y1 = box
        self.image[y0:y1, x0:x1] = color

    def label(self, box: tuple[int, int, int, int], color: str, content: str, kind: str) -> None:
        """Marks a box as showing `content` on a thing of the given colour and kind."""
        x0, y0, x1, y1 = box
        self.labels[y0:y1, x0:x1] = COLOR_IDS[color] * NUM_CONTENTS + CONTENT_IDS[content]
        self.kinds[y0:y1, x0:x1] = COLOR_IDS[color] * NUM_CONTENTS + CONTENT_IDS[kind]


def draw_scene(seed: int, *, split: Split = "train", difficulty: Difficulty = FULL) -> Scene:
    """Draws one scene and writes its questions.

    Args:
      seed: non-negative; the two splits are separate namespaces, so seed 7 of each are unrelated pictures.
      split: which handwriting may appear, and which namespace of seeds.
      difficulty: how crowded the picture is.

    Returns:
      The scene; the same arguments always give the same one.

    Raises:
      VilaError: scikit-learn is not installed.
    """
    rng = np.random.default_rng((seed, _SPLIT_IDS[split]))
    cells, width, height = _grid(rng, difficulty)
    canvas = _background(rng, width, height)
    # A thing to read stands at a corner (or end) of the grid, so that no border between tiles cuts it.
    corners = [cell for cell in cells if cell[2] in _uncut(width, height)]
    n_fine = min(int(rng.integers(difficulty.fine[0], difficulty.fine[1] + 1)), len(corners))
    fine_cells = [corners[i] for i in rng.permutation(len(corners))[:n_fine]]
    free = [cell for cell in cells if cell not in fine_cells]
    n_shapes = min(int(rng.integers(difficulty.shapes[0], difficulty.shapes[1] + 1)), len(free))
    objects = _draw_shapes(rng, canvas, [free[i] for i in rng.permutation(len(free))[:n_shapes]])
    taken = {thing.color for thing in objects}
    objects += _draw_fine(rng, canvas, fine_cells, split, taken, several=difficulty.several)
    image = np.clip(canvas.image, 0, 255).astype(np.uint8)
    return Scene(image, tuple(objects), ask(objects, rng), canvas.labels, canvas.kinds)


def _grid(rng: np.random.Generator, difficulty: Difficulty) -> tuple[list[tuple[int, int, str]], int, int]:
    """Cells as `(x, y, place)`, and the picture's width and height."""
    if difficulty.single:
        return [(8, 8, _CENTER)], _SINGLE, _SINGLE
    u = rng.random()
    wide, tall = u < difficulty.oblong / 2, difficulty.oblong / 2 <= u < difficulty.oblong
    if wide:  # the one row of cells lies in the middle of the 48 pixels
        return [(CELL * c, 8, PLACES[3 + c]) for c in range(3)], 96, 48
    if tall:
        return [(8, CELL * r, PLACES[3 * r + 1]) for r in range(3)], 48, 96
    return [(CELL * c, CELL * r, PLACES[3 * r + c]) for r in range(3) for c in range(3)], 96, 96


def _uncut(width: int, height: int) -> tuple[str, ...]:
    """Places whose cells lie inside one 48-pixel tile."""
    if width == _SINGLE and height == _SINGLE:
        return (_CENTER,)
    if width == height:
        return PLACES[0], PLACES[2], PLACES[6], PLACES[8]
    return (PLACES[3], PLACES[5]) if width > height else (PLACES[1], PLACES[7])


def _background(rng: np.random.Generator, width: int, height: int) -> _Canvas:
    """A dark grey with a slight tint, a gradient and grain."""
    base = rng.uniform(35, 95) + rng.uniform(-10, 10, 3)
    slope = rng.uniform(-15, 15, 2)
    ramp = slope[0] * np.linspace(-1, 1, height)[:, None] + slope[1] * np.linspace(-1, 1, width)[None, :]
    grain = rng.standard_normal((height, width), np.float32) * np.float32(4)
    image = (ramp.astype(np.float32) + grain)[:, :, None] + base.astype(np.float32)
    return _Canvas(image, np.zeros((height, width), np.uint16), np.zeros((height, width), np.uint16))


def _shade(rng: np.random.Generator, color: str) -> Float32[np.ndarray, "3"]:
    """The named colour, varied a little."""
    return (np.array(COLORS[color]) + rng.uniform(-10, 10, 3)).astype(np.float32)


def _draw_shapes(rng: np.random.Generator, canvas: _Canvas, cells: list[tuple[int, int, str]]) -> list[SceneObject]:
    """One shape in each cell; colours and kinds repeat often enough for counting to be worth a question."""
    most = min(len(cells), _MOST_COLORS)
    palette = rng.permutation(len(COLORS))[: int(rng.integers(1, max(most, 1) + 1))]
    forms = rng.permutation(len(SHAPES))[: int(rng.integers(1, max(most, 1) + 1))]
    objects = []
    for x, y, place in cells:
        color = tuple(COLORS)[palette[rng.integers(len(palette))]]
        kind = SHAPES[forms[rng.integers(len(forms))]]
        size = int(rng.integers(*_SHAPE_SIZES))
        x0, y0 = (int(corner + 1 + rng.integers(CELL - 1 - size)) for corner in (x, y))
        mask = sprites.shape_mask(kind, size)
        canvas.paint(x0, y0, mask, _shade(rng, color))
        code = COLOR_IDS[color] * NUM_CONTENTS + CONTENT_IDS[kind]
        for labels in (canvas.labels, canvas.kinds):
            labels[y0 : y0 + size, x0 : x0 + size][mask > 0.5] = code
        objects.append(SceneObject(kind, color, (x0, y0, x0 + size, y0 + size), place))
    return objects


def _draw_fine(
    rng: np.random.Generator,
    canvas: _Canvas,
    cells: list[tuple[int, int, str]],
    split: Split,
    taken: set[str],
    *,
    several: bool,
) -> list[SceneObject]:
    """One thing to read in each cell, in colours that nothing else has; at most one plate and one sign, or several."""
    free_colors = [color for color in CARD_COLORS if color not in taken]
    colors = [free_colors[i] for i in rng.permutation(len(free_colors))]
    kinds: list[str] = []
    for _ in cells:
        left = [kind for kind in FINE_THINGS if several or kind == "card" or kind not in kinds]
        kinds.append(left[rng.integers(len(left))])
    things = []
    for cell, kind, color in zip(cells, kinds, colors[: len(cells)], strict=True):
        if kind == "sign":
            things.append(_draw_sign(rng, canvas, cell, color))
        else:
            n_digits = 1 if kind == "card" else int(rng.integers(2, 4))
            things.append(_draw_digits(rng, canvas, cell, color, kind, n_digits, split))
    return things


def _draw_digits(
    rng: np.random.Generator,
    canvas: _Canvas,
    cell: tuple[int, int, str],
    color: str,
    kind: str,
    n_digits: int,
    split: Split,
) -> SceneObject:
    """Handwritten digits on white paper in a coloured frame; a card holds one, a plate two or three."""
    width, paper = (20, (4, 4, 16, 16)) if kind == "card" else (30, (2, 4, 28, 16))
    x0 = int(cell[0] + rng.integers(CELL - width + 1))
    y0 = int(cell[1] + rng.integers(CELL - 20 + 1))
    box = (x0, y0, x0 + width, y0 + 20)
    left, top, right = x0 + paper[0], y0 + paper[1], x0 + paper[2]
    canvas.fill(box, _shade(rng, color))
    canvas.fill((left, top, right, y0 + paper[3]), _PAPER)

    used = _DIGIT_ADVANCE * (n_digits - 1) + handwriting.SPRITE
    x = left + int(rng.integers(right - left - used + 1))
    digits = [int(d) for d in rng.integers(10, size=n_digits)]
    scans = []
    for i, digit in enumerate(digits):
        choices = handwriting.scan_indices(split, digit)
        scans.append(choices[rng.integers(len(choices))])
        mask = handwriting.ink(scans[-1], int(rng.integers(handwriting.VARIANTS)))
        canvas.paint(x, top + int(rng.integers(12 - handwriting.SPRITE + 1)), mask, _INK)
        # Each digit owns its column of the frame, from its left edge to the next digit's.
        column = (x if i else x0, y0, x + _DIGIT_ADVANCE if i < n_digits - 1 else box[2], y0 + 20)
        canvas.label(column, color, str(digit), kind)
        x += _DIGIT_ADVANCE
    return SceneObject(kind, color, box, cell[2], " ".join(map(str, digits)), tuple(scans))


def _draw_sign(rng: np.random.Generator, canvas: _Canvas, cell: tuple[int, int, str], color: str) -> SceneObject:
    """A word on a board on a post."""
    x0 = int(cell[0] + rng.integers(CELL - 30 + 1))
    y0 = int(cell[1] + rng.integers(CELL - 27 + 1))
    shade = _shade(rng, color)
    board, post = (x0, y0, x0 + 30, y0 + 18), (x0 + 12, y0 + 18, x0 + 18, y0 + 27)
    canvas.fill(board, shade)
    canvas.fill(post, shade)
    canvas.fill((x0 + 2, y0 + 3, x0 + 28, y0 + 15), _PAPER)

    word = WORDS[rng.integers(len(WORDS))]
    mask = sprites.word_mask(word)
    x = x0 + 3 + (24 - mask.shape[1]) // 2 + int(rng.integers(-1, 2))
    canvas.paint(x, y0 + 3 + int(rng.integers(2)), mask, _INK)
    for part in (board, post):
        canvas.label(part, color, word, "sign")
    return SceneObject("sign", color, (x0, y0, x0 + 30, y0 + 27), cell[2], word)
