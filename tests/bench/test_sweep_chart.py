"""The chart of a sweep: a line for every batch and for every budget; what was refused is left out."""

import pytest
from PIL import Image

from vila_jax.bench import sweep_chart
from vila_jax.bench.results import Results, Row
from vila_jax.bench.timing import Times

SETTINGS = {"device": "cpu", "machine": "a"}


def rows(batch, budget, visual):
    case = {"model": "tiny", "batch": batch, "budget": budget}
    facts = {"visual_tokens": visual, "floor_seconds": 0.5}
    times = Times(2.0, 1.0, 4.0, 20)
    return [Row("prefill", case, {"device": times}, facts), Row("decode", case, {"step": times}, facts)]


@pytest.mark.parametrize("made", [[*rows(1, None, 16), *rows(1, "hired:0.25", 4), *rows(8, None, 16)], []])
def test_chart(tmp_path, made):
    refused = Row("prefill", {"model": "tiny", "batch": 8, "budget": "hired:5000"}, refused="too many")
    sweep_chart.draw_sweep(Results(SETTINGS, [*made, refused]), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        image.load()


def test_points_reach_from_the_slowest_to_the_fastest_repeat():
    prefill, decode = rows(8, None, 16)
    assert sweep_chart._first_token(prefill) == (16, 2000.0, 1000.0, 4000.0, 500.0)
    assert sweep_chart._rate(decode) == (8, 4.0, 2.0, 8.0, 16.0)
