"""Handwritten digits: the 8x8 scans that ship inside scikit-learn, split once and for all into train and test.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits (UCI, 1998), through
`sklearn.datasets.load_digits`, which reads a file of the installed package: no network.
"""

import functools

import numpy as np
from jaxtyping import Float32, Int
from PIL import Image

from vila_jax.errors import VilaError
from vila_jax.scenes.world import Split

SPRITE = 10  # pixels a side: the 8x8 scan at its own resolution, with a margin of one pixel to turn in
VARIANTS = 8  # slightly turned and scaled versions of each scan
_TEST_EVERY = 5  # every fifth scan of each digit is held out


@functools.cache
def _scans() -> tuple[Float32[np.ndarray, "N 8 8"], Int[np.ndarray, "N"]]:
    """All scans as ink in [0, 1] and their digits."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise VilaError(
            "scenes show real handwriting, and scikit-learn, which holds it, is not installed",
            where="vila_jax.scenes",
            fix="Run: pip install 'vila-jax[demo]'",
        ) from error
    digits = load_digits()
    return (digits.images / 16.0).astype(np.float32), np.asarray(digits.target)


@functools.cache
def scan_indices(split: Split, digit: int) -> tuple[int, ...]:
    """Indices of the scans of `digit` (0 to 9) that belong to `split`; the two splits share none.

    Raises:
      VilaError: scikit-learn is not installed.
    """
    _, targets = _scans()
    of_digit = np.flatnonzero(targets == digit)
    held_out = np.arange(len(of_digit)) % _TEST_EVERY == _TEST_EVERY - 1
    return tuple(int(i) for i in of_digit[held_out == (split == "test")])


@functools.cache
def ink(scan: int, variant: int) -> Float32[np.ndarray, "10 10"]:
    """Ink coverage of one scan, turned by up to 8 degrees and scaled by up to 8 % according to `variant`."""
    rng = np.random.default_rng((scan, variant))
    angle, scale = np.deg2rad(rng.uniform(-8, 8)), rng.uniform(0.92, 1.08)
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    shift = 4.0 - np.array([[cos, sin], [-sin, cos]]) @ np.full(2, SPRITE / 2)
    picture = Image.fromarray(_scans()[0][scan])
    matrix = (cos, sin, shift[0], -sin, cos, shift[1])
    turned = picture.transform((SPRITE, SPRITE), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    return np.clip(np.asarray(turned), 0.0, 1.0)
