"""Pre-rendered coverage masks: shapes and words are drawn once and only pasted afterwards."""

import functools

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageDraw, ImageFont

WORD_PX = 10  # type size: readable at full resolution, not when halved
_OVERSAMPLE = 8
_ASCENDER_PX = 1  # where the tallest letters begin below the origin of a line of this type


@functools.cache
def shape_mask(kind: str, size: int) -> Float32[np.ndarray, "S S"]:
    """Antialiased coverage in [0, 1] of a filled shape that spans `size` pixels."""
    s = size * _OVERSAMPLE
    canvas = Image.new("L", (s, s))
    draw = ImageDraw.Draw(canvas)
    if kind in ("circle", "ring"):
        draw.ellipse((0, 0, s - 1, s - 1), fill=255)
        if kind == "ring":
            draw.ellipse((0.27 * s, 0.27 * s, 0.73 * s, 0.73 * s), fill=0)
    elif kind == "square":
        draw.rectangle((0.04 * s, 0.04 * s, 0.96 * s, 0.96 * s), fill=255)
    elif kind == "triangle":
        draw.polygon([(s / 2, 0), (s - 1, 0.95 * s), (0, 0.95 * s)], fill=255)
    elif kind == "cross":
        draw.rectangle((0.34 * s, 0, 0.66 * s, s - 1), fill=255)
        draw.rectangle((0, 0.34 * s, s - 1, 0.66 * s), fill=255)
    elif kind == "star":
        angles = np.pi * (np.arange(10) / 5 - 0.5)
        radii = np.where(np.arange(10) % 2 == 0, 0.52, 0.22) * s
        points = [(s / 2 + r * np.cos(a), 0.54 * s + r * np.sin(a)) for r, a in zip(radii, angles, strict=True)]
        draw.polygon(points, fill=255)
    else:
        raise ValueError(f"no such shape: {kind}")
    small = canvas.resize((size, size), Image.Resampling.BOX)
    return np.asarray(small, np.float32) / np.float32(255)


@functools.cache
def word_mask(word: str) -> Float32[np.ndarray, "11 W"]:
    """Antialiased coverage in [0, 1] of a word in Pillow's embedded font, on a common baseline."""
    font = ImageFont.load_default(WORD_PX)
    canvas = Image.new("L", (64, 32))  # roomy: letters may reach a little beyond the box that the font reports
    ImageDraw.Draw(canvas).text((16, 8), word, fill=255, font=font)
    inked = np.flatnonzero(np.asarray(canvas).any(axis=0))
    canvas = canvas.crop((int(inked[0]), 8 + _ASCENDER_PX, int(inked[-1]) + 1, 8 + _ASCENDER_PX + 11))
    return np.asarray(canvas, np.float32) / np.float32(255)
