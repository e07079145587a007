"""`python -m train plot`: what is drawn of runs, and what is said of folders that are none."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from train.__main__ import main
from train.metrics import history, plot


def run(folder, steps, speed=1000.0):
    folder.mkdir(parents=True)
    rows = [{"step": 1, "note": "begun"}]
    for step in steps:
        loss = None if step == 30 else 3 * math.exp(-step / 50)
        rows.append({"step": step, "loss": loss, "learning_rate/decoder": 1e-4, "learning_rate/tower": 1e-5})
        rows[-1] |= {} if step == 10 else {"tokens_per_second": speed}
    (folder / history.FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def drawn(path):
    """Whether each third of a picture has anything dark on it."""
    pixels = np.asarray(Image.open(path).convert("L"))
    return [bool((part < 128).any()) for part in np.array_split(pixels, 3)]


def test_one_run_is_drawn_to_its_folder(tmp_path):
    folder = run(tmp_path / "a", range(10, 200, 10))
    assert main(["plot", str(folder)]) == 0
    assert drawn(folder / plot.FILE) == [True, True, True]


def test_runs_are_laid_over_each_other(tmp_path):
    folders = [run(tmp_path / name / "sft", range(10, 100, 10)) for name in ("a", "b")]
    assert main(["plot", *map(str, folders), "--out", str(tmp_path / "new" / "both.png")]) == 0
    assert drawn(tmp_path / "new" / "both.png") == [True, True, True]
    assert [plot._label(folder, folders) for folder in folders] == ["a/sft", "b/sft"]


def test_what_is_no_run(tmp_path, capsys):
    assert main(["plot", str(tmp_path)]) == 3
    assert "no step was logged" in capsys.readouterr().err


def test_smoothing():
    assert plot.smoothed([2.0, 2.0, math.nan, 2.0], 3) == pytest.approx([2.0] * 4)
    assert plot.smoothed([8.0, 4.0, 3.0, 5.0, 4.0], 2) == pytest.approx([8.0, 5.0, 4.0, 4.0, 4.5])
    assert math.isnan(plot.smoothed([math.nan, 1.0], 5)[0]) and plot.smoothed([1.0, 5.0], 0) == [1.0, 5.0]
