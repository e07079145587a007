"""A picture of what a token budget keeps: kept patches bright, dropped ones dark, with the count of every tile.

Patches that are merged in one token share a colour and an outline; the one that stands for them has less of it.
A token that no patch stands for (all that is left of a tile, say) is grey.

    title                                          tokens kept of all
    ======---------------------------------------------------------
    overview                        full resolution
    +-------------------------+     +------------+------------+
    | 288 of 576              |     | 57 of 576  | 61 of 576  |
    |                         |     +------------+------------+
    |                         |     | 96 of 576  | 74 of 576  |
    +-------------------------+     +------------+------------+

Drawn with Pillow alone. The pixels shown are those that the model sees, not those of the file.
"""

import colorsys
import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from vila_jax.infer.chosen import Chosen
from vila_jax.vision.geometry import TileGeometry
from vila_jax.vision.preprocess import PreprocessConfig, Preprocessor, ProcessedImage
from vila_jax.vision.vila import VilaPreprocessor

_BACKGROUND, _TEXT, _MUTED, _TRACK = (17, 19, 24), (236, 238, 242), (150, 156, 168), (45, 49, 58)
_ACCENT = (255, 196, 61)
_VEIL, _THIN_VEIL = 0.42, 0.15
"""How much of its token's colour a merged patch has, and one that stands for others."""
_PANEL, _MARGIN, _GAP, _LEAST_WIDTH = 720, 28, 24, 720

Color = tuple[int, int, int]
Box = tuple[int, int, int, int]
"""(top, bottom, left, right), in cells."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a budget keeps of the picture.

    Attributes:
      name: of the budget.
      image: what it shows of the picture.
      chosen: the tokens.
      tokens: visual tokens of the picture; newline tokens, which are no patches, included.
      full: visual tokens without a budget.
    """

    name: str
    image: ProcessedImage
    chosen: Chosen
    tokens: int
    full: int


@dataclasses.dataclass(frozen=True)
class View:
    """One rectangle of patches: the overview, or the mosaic of full-resolution tiles.

    Attributes:
      name: what stands above it.
      pixels: the patches, one after another without seams.
      cells: flat patch index of every cell.
      tiles: the part of the view that each tile covers.
      first_tile: the number of the first of them.
    """

    name: str
    pixels: UInt8[np.ndarray, "height width 3"]
    cells: Int[np.ndarray, "rows columns"]
    tiles: tuple[Box, ...]
    first_tile: int = 0


def draw(preprocessor: Preprocessor | VilaPreprocessor, choices: list[Choice], heading: str) -> Image.Image:
    """One picture with the choices below each other."""
    blocks = [_draw_choice(make_views(choice.image, preprocessor), choice) for choice in choices]
    width = max(block.width for block in blocks)
    canvas = Image.new("RGB", (width + 2 * _MARGIN, _heights(blocks)), _BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    pen.text((_MARGIN, _MARGIN), _fitted(heading, width, 16), _MUTED, _font(16))
    top = _MARGIN + 16 + _GAP
    for block in blocks:
        canvas.paste(block, (_MARGIN, top))
        top += block.height + 2 * _GAP
    return canvas


def _heights(blocks: list[Image.Image]) -> int:
    return 2 * _MARGIN + 16 + _GAP + sum(block.height + 2 * _GAP for block in blocks) - 2 * _GAP


def make_views(image: ProcessedImage, preprocessor: Preprocessor | VilaPreprocessor) -> list[View]:
    """The overview, if there is one, and where there is a grid the mosaic without its padding."""
    geometry, side = image.geometry, image.geometry.corner or image.geometry.side
    edge = side * preprocessor.cell
    tiles = _whole_cells(_seen(to_bytes(image.pixels, preprocessor.values_config), image, preprocessor), edge)
    views = []
    if geometry.has_overview:
        name = f"{'what the model sees' if geometry.grid is None else 'overview'}, {edge} x {edge} px"
        views = [View(name, tiles[0], geometry.overview().reshape(side, side), ((0, side, 0, side),))]
    if geometry.grid is None or geometry.mosaic().size == 0:  # of a very thin picture nothing is left without padding
        return views
    rows, columns = geometry.grid
    mosaic = _joined(tiles[geometry.has_overview :], (rows, columns))
    top, bottom, left, right = (place * preprocessor.cell for place in geometry.picture_box())
    name, first = f"full resolution, {rows} x {columns} tiles", int(geometry.has_overview)
    cut = mosaic[top:bottom, left:right]
    return [*views, View(name, cut, geometry.mosaic(), _tile_boxes(geometry), first)]


def _seen(
    tiles: UInt8[np.ndarray, "R h w 3"], image: ProcessedImage, preprocessor: Preprocessor | VilaPreprocessor
) -> UInt8[np.ndarray, "P H W 3"]:
    """The pixels of the geometry's tiles; of several scales those of the one to whose size all maps are brought."""
    if image.scales is None or len(tiles) == 1:
        return tiles
    assert isinstance(preprocessor, VilaPreprocessor)
    config = preprocessor.config
    first = sum(rows * columns for rows, columns in config.squares[: config.resize_to])
    if config.mode == "s2":  # one block, of all tiles of its scale
        rows, columns = config.squares[config.resize_to]
        return _joined(tiles[first : first + rows * columns], (rows, columns))[None]
    return tiles[first : first + image.geometry.num_tiles]


def _joined(tiles: UInt8[np.ndarray, "P H W 3"], grid: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
    """Tiles in raster order as one picture."""
    (rows, columns), (height, width) = grid, tiles.shape[1:3]
    parts = tiles.reshape(rows, columns, height, width, 3).transpose(0, 2, 1, 3, 4)
    return parts.reshape(rows * height, columns * width, 3)


def _whole_cells(tiles: UInt8[np.ndarray, "P H W 3"], edge: int) -> UInt8[np.ndarray, "P edge edge 3"]:
    """Tiles cut, or filled up with black, to the pixels that their cells cover."""
    missing = (0, max(edge - tiles.shape[1], 0))
    return np.pad(tiles, ((0, 0), missing, missing, (0, 0)))[:, :edge, :edge]


def to_bytes(pixels: Float[np.ndarray, "P 3 H W"], config: PreprocessConfig) -> UInt8[np.ndarray, "P H W 3"]:
    """Pixel values back to the 8-bit colours that they were made from."""
    mean, std = (np.array(values, np.float32)[None, :, None, None] for values in (config.mean, config.std))
    values = pixels * std + mean if config.do_normalize else pixels
    values = values / (config.rescale_factor or 1.0)
    return np.clip(np.round(values), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def _tile_boxes(geometry: TileGeometry) -> tuple[Box, ...]:
    """The visible part of each tile of the grid, in cells of the mosaic."""
    assert geometry.grid is not None
    side, (rows, columns) = geometry.side, geometry.grid
    top, bottom, left, right = geometry.picture_box()
    return tuple(
        (
            max(row * side, top) - top,
            min((row + 1) * side, bottom) - top,
            max(column * side, left) - left,
            min((column + 1) * side, right) - left,
        )
        for row in range(rows)
        for column in range(columns)
    )


def _cell_sizes(views: list[View]) -> list[tuple[int, int]]:
    """(height, width) of the cells of each view in pixels: whole numbers, and all views about equally large."""
    rows, columns = views[-1].cells.shape
    edge = max(1, _PANEL // max(rows, columns))
    if len(views) == 1:
        return [(edge, edge)]
    side = views[0].cells.shape[0]
    return [(max(1, round(rows * edge / side)), max(1, round(columns * edge / side))), (edge, edge)]


def _draw_choice(views: list[View], choice: Choice) -> Image.Image:
    """Title, bar and views of one budget."""
    panels = [_draw_view(view, size, choice.chosen) for view, size in zip(views, _cell_sizes(views), strict=True)]
    width = max(_LEAST_WIDTH, sum(panel.width for panel in panels) + _GAP * (len(panels) - 1))
    canvas = Image.new("RGB", (width, 96 + max(panel.height for panel in panels)), _BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    share = choice.tokens / choice.full
    totals = f"{choice.tokens:,} of {choice.full:,} tokens · {100 * share:.3g} %"
    pen.text((width, 2), totals, _TEXT, _font(22), anchor="ra")
    pen.text((0, 0), _fitted(choice.name, width - 24 - int(_font(22).getlength(totals)), 26), _TEXT, _font(26))
    pen.rounded_rectangle((0, 44, width - 1, 49), 3, _TRACK)
    pen.rounded_rectangle((0, 44, max(6, round(width * min(share, 1))) - 1, 49), 3, _ACCENT)
    left = 0
    for view, panel in zip(views, panels, strict=True):
        pen.text((left, 66), view.name, _MUTED, _font(16))
        canvas.paste(panel, (left, 96))
        left += panel.width + _GAP
    return canvas


def _draw_view(view: View, cell: tuple[int, int], chosen: Chosen) -> Image.Image:
    """The patches: those in no token darkened, merged ones tinted, with outlines and the tokens of every tile."""
    rows, columns = view.cells.shape
    height, width = rows * cell[0], columns * cell[1]
    bright = Image.fromarray(view.pixels).resize((width, height), Image.Resampling.LANCZOS)
    token = chosen.clusters[view.cells]
    panel = Image.composite(bright, _darkened(bright), Image.fromarray(np.kron(token >= 0, np.ones(cell, bool))))
    zone = _zones(token, chosen)
    colors = [_token_color(i) if patch >= 0 else _MUTED for i, patch in enumerate(chosen.indices)]
    panel = _tinted(panel, zone, np.isin(view.cells, chosen.indices), colors, cell)
    pen = ImageDraw.Draw(panel)
    _outline(pen, zone, colors, cell)
    for i, (top, bottom, left, right) in enumerate(view.tiles):
        box = (left * cell[1], top * cell[0], right * cell[1] - 1, bottom * cell[0] - 1)
        if len(view.tiles) > 1:
            pen.rectangle(box, outline=_TEXT)
        tokens = int((chosen.tiles == view.first_tile + i).sum())
        _badge(panel, (box[0] + 6, box[1] + 6), f"{tokens} of {(bottom - top) * (right - left)}")
    return panel


def _zones(token: Int[np.ndarray, "rows columns"], chosen: Chosen) -> Int[np.ndarray, "rows columns"]:
    """What an outline surrounds: -2 what is dropped, -1 patches that are a token each, else the token."""
    sizes = np.bincount(chosen.clusters[chosen.clusters >= 0], minlength=len(chosen.indices))
    alone = (sizes == 1) & (chosen.indices >= 0)
    return np.where(token < 0, -2, np.where(alone[token], -1, token))


def _tinted(
    panel: Image.Image,
    zone: Int[np.ndarray, "rows columns"],
    stands: Bool[np.ndarray, "rows columns"],
    colors: list[Color],
    cell: tuple[int, int],
) -> Image.Image:
    """Merged patches with some of the colour of their token."""
    if zone.max(initial=-1) < 0:
        return panel
    veil = np.where(zone < 0, 0.0, np.where(stands, _THIN_VEIL, _VEIL))[:, :, None]
    color, veil = (np.repeat(np.repeat(x, cell[0], axis=0), cell[1], axis=1) for x in (np.array(colors)[zone], veil))
    return Image.fromarray(((1 - veil) * np.asarray(panel, np.float32) + veil * color).astype(np.uint8))


def _token_color(token: int) -> Color:
    """Neighbours in the sequence are far apart on the colour wheel: steps of the golden ratio."""
    hue = token * 0.618034 % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.8, 1.0)
    return int(255 * red), int(255 * green), int(255 * blue)


def _darkened(image: Image.Image) -> Image.Image:
    gray = np.asarray(image.convert("L"), np.float32)[:, :, None]
    color = np.asarray(image, np.float32)
    return Image.fromarray((0.20 * color + 0.10 * gray + 4).astype(np.uint8))


def _outline(
    pen: ImageDraw.ImageDraw, zone: Int[np.ndarray, "rows columns"], colors: list[Color], cell: tuple[int, int]
) -> None:
    """Lines around what is kept: where patches of different zones meet (see `_zones`), on the side of the kept one."""
    height, width = cell
    framed = np.pad(zone, 1, constant_values=-3)
    for row, column in np.argwhere(zone > -2):
        x, y = int(column) * width, int(row) * height
        right, bottom = x + width - 1, y + height - 1
        own, above, below = (framed[row + 1 + step, column + 1] for step in (0, -1, 1))
        before, after = (framed[row + 1, column + 1 + step] for step in (-1, 1))
        sides = (
            (above, (x, y, right, y)),
            (below, (x, bottom, right, bottom)),
            (before, (x, y, x, bottom)),
            (after, (right, y, right, bottom)),
        )
        for other, line in sides:
            if other != own:
                pen.line(line, _ACCENT if own == -1 else colors[own])


def _badge(panel: Image.Image, corner: tuple[int, int], text: str) -> None:
    """A label on a dark plate that lets the picture shine through."""
    font = _font(15)
    plate = Image.new("RGBA", (int(font.getlength(text)) + 14, 24), (0, 0, 0, 0))
    pen = ImageDraw.Draw(plate)
    pen.rounded_rectangle((0, 0, plate.width - 1, plate.height - 1), 6, (*_BACKGROUND, 215))
    pen.text((7, 11), text, _TEXT, font, anchor="lm")
    panel.paste(plate.convert("RGB"), corner, plate.getchannel("A"))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fitted(text: str, width: int, size: int) -> str:
    """The text, cut so that it is not wider than `width` pixels."""
    font = _font(size)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
