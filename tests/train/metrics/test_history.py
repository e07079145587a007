"""`metrics.jsonl` after a crash: half a line is no line, and steps that no checkpoint knows are cut."""

import json
import math

import pytest

from train.metrics import history
from train.metrics.rows import Row
from train.metrics.writers import Jsonl
from vila_jax.errors import ConfigError


def written(path, steps, done=0):
    writer = Jsonl(path, done)
    for step in steps:
        writer.write(Row(step, {"loss": step / 3}))
    writer.close()
    return writer


def test_rows_come_back(tmp_path):
    path = tmp_path / "run" / history.FILE
    writer = Jsonl(path)
    writer.write(Row(1, {"loss": 0.1 + 0.2, "skipped": 0, "grad_norm": math.inf}))
    assert history.read(path) == [{"step": 1, "loss": 0.3, "skipped": 0, "grad_norm": None}], "before it is closed"
    writer.note(2, "said")
    writer.close()
    assert history.read(path)[1] == {"step": 2, "note": "said"}
    assert history.read(tmp_path / "none") == []


def test_half_a_line_is_no_line(tmp_path):
    path = tmp_path / history.FILE
    written(path, (1, 2, 3))
    path.write_bytes(path.read_bytes()[:-4])
    assert [row["step"] for row in history.read(path)] == [1, 2]
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    resumed = written(path, (3, 4), done=2)
    assert resumed.lost == 1 and [row["step"] for row in history.read(path)] == [1, 2, 3, 4]


def test_every_step_comes_once(tmp_path):
    path = tmp_path / history.FILE
    written(path, (10, 20, 30, 40))
    resumed = written(path, (30, 40, 50), done=25)
    assert resumed.lost == 2 and [row["step"] for row in history.read(path)] == [10, 20, 30, 40, 50]
    assert written(path, (), done=50).lost == 0
    assert written(path, (10,), done=0).lost == 5, "a run from its beginning"
    assert [row["step"] for row in history.read(path)] == [10]


@pytest.mark.parametrize("line", ["loss 3", '{"loss": 3}', "[1]"])
def test_another_file(tmp_path, line):
    path = tmp_path / history.FILE
    path.write_text(json.dumps({"step": 1}) + "\n" + line + "\n")
    with pytest.raises(ConfigError, match="line 2"):
        history.read(path)
