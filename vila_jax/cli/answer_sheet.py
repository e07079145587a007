"""A picture of questions and answers: each scene beside what was asked about it and what the model said.

    +-----------+  What color is the ring?                      red
    |           |  * all 192 tokens: red    * 36 tokens: blue
    |   scene   |
    |           |  Read the plate.                            4 7 2
    +-----------+  * all 192 tokens: 4 7 2  * 36 tokens: 4 7 2

Drawn with Pillow alone, in the colours of `overlay`.
"""

import dataclasses
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from vila_jax.exam.items import Item, Reply

_BACKGROUND, _TEXT, _MUTED = (17, 19, 24), (236, 238, 242), (150, 156, 168)
_RIGHT, _WRONG = (96, 199, 125), (240, 104, 104)
_PICTURE, _WORDS, _MARGIN, _GAP, _LINE = 288, 424, 28, 24, 72
_COLUMNS = 2


@dataclasses.dataclass(frozen=True)
class Exhibit:
    """A scene on show.

    Attributes:
      items: the questions about it, at most four.
      replies: for each way of showing the scene the replies to the items.
    """

    items: Sequence[Item]
    replies: Sequence[Sequence[Reply]]

    @property
    def picture(self) -> Image.Image:
        return Image.fromarray(self.items[0].scene.image)


def draw_sheet(exhibits: Sequence[Exhibit], heading: str) -> Image.Image:
    """The exhibits in two columns."""
    rows = -(-len(exhibits) // _COLUMNS)
    cell_width = _PICTURE + _GAP + _WORDS
    width = 2 * _MARGIN + _COLUMNS * cell_width + (_COLUMNS - 1) * _GAP
    top = _MARGIN + 20 + _GAP
    sheet = Image.new("RGB", (width, top + rows * (_PICTURE + _GAP) - _GAP + _MARGIN), _BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, _MARGIN), heading, _MUTED, _font(18))
    for i, exhibit in enumerate(exhibits):
        corner = (_MARGIN + i % _COLUMNS * (cell_width + _GAP), top + i // _COLUMNS * (_PICTURE + _GAP))
        _draw_exhibit(sheet, pen, exhibit, corner)
    return sheet


def _draw_exhibit(sheet: Image.Image, pen: ImageDraw.ImageDraw, exhibit: Exhibit, corner: tuple[int, int]) -> None:
    picture = exhibit.picture
    scale = _PICTURE / max(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
    x, y = corner
    sheet.paste(picture, (x + (_PICTURE - picture.width) // 2, y + (_PICTURE - picture.height) // 2))
    x += _PICTURE + _GAP
    for i, item in enumerate(exhibit.items):
        top = y + i * _LINE
        pen.text((x, top), item.question.text, _TEXT, _font(18))
        pen.text((x + _WORDS, top), item.question.answer, _MUTED, _font(18), anchor="ra")
        left = x
        for replies in exhibit.replies:
            left += _draw_reply(pen, replies[i], (left, top + 30), x + _WORDS - left) + _GAP


def _draw_reply(pen: ImageDraw.ImageDraw, reply: Reply, corner: tuple[int, int], room: int) -> int:
    """A dot that says whether the answer is right, the tokens and the answer; returns the width, at most `room`."""
    x, y = corner
    color, font = _RIGHT if reply.right else _WRONG, _font(16)
    pen.ellipse((x, y + 5, x + 9, y + 14), color)
    tokens, text = f"{reply.tokens} tokens: ", reply.text or "(nothing)"
    start = 16 + font.getlength(tokens)
    while start + font.getlength(text) > room and len(text) > 1:
        text = f"{text.removesuffix('…')[:-1]}…"
    pen.text((x + 16, y), tokens, _MUTED, font)
    pen.text((x + start, y), text, color, font)
    return int(start + font.getlength(text))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
