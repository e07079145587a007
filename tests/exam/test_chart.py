"""The chart: what is in the picture file, as far as colours tell."""

import sys

import numpy as np
import pytest
from PIL import Image

from vila_jax.errors import VilaError
from vila_jax.exam.chart import draw_chart
from vila_jax.exam.examiner import Setting
from vila_jax.exam.items import Reply, draw_exam
from vila_jax.exam.results import tabulate

HIRED, RANDOM, FULL = (0xD1, 0x49, 0x5B), (0x5B, 0x64, 0x72), (0x2C, 0x8F, 0x4E)


@pytest.fixture(scope="module")
def replies():
    items = draw_exam(18)

    def answered(right, tokens):
        return [Reply(item, item.question.answer if i < right else "", tokens) for i, item in enumerate(items)]

    return {
        Setting("full"): answered(18, 192),
        Setting("blank"): answered(0, 192),
        Setting("hired", 0.4): answered(12, 72),
        Setting("hired", 0.2): answered(6, 36),
        Setting("random", 0.2): answered(4, 36),
    }


def _draw(replies, folder):
    draw_chart(tabulate(replies), folder / "chart.png", title="a title", note="a note")
    return np.asarray(Image.open(folder / "chart.png").convert("RGB"))


def _places(pixels, color):
    """Rows and columns where a colour stands, in the left panel without its title, legend and small print."""
    height, width, _ = pixels.shape
    panel = pixels[int(0.16 * height) : int(0.9 * height), : width // 2]
    return np.argwhere((np.abs(panel.astype(int) - color) <= 2).all(axis=-1))


def test_methods_have_their_colours_and_more_is_higher(replies, tmp_path):
    pixels = _draw(replies, tmp_path)
    hired, full = _places(pixels, HIRED), _places(pixels, FULL)
    assert len(hired) > 100 and len(_places(pixels, RANDOM)) > 100
    assert np.median(full[:, 0]) < np.median(hired[:, 0])  # all right: above
    left, right = hired[hired[:, 1] < np.median(hired[:, 1])], hired[hired[:, 1] > np.median(hired[:, 1])]
    assert np.median(right[:, 0]) < np.median(left[:, 0])  # more tokens: further right, and higher


def test_what_was_not_asked_is_not_drawn(replies, tmp_path):
    fewer = {setting: said for setting, said in replies.items() if setting.method in ("full", "random")}
    pixels = _draw(fewer, tmp_path)
    assert len(_places(pixels, HIRED)) == 0 and len(_places(pixels, FULL)) > 50


def test_missing_matplotlib_says_what_to_install(replies, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(VilaError, match=r"pip install 'vila-jax\[demo\]'"):
        _draw(replies, tmp_path)
