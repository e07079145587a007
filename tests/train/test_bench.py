"""`python -m train bench` on a tiny model: what it reports, and that its batches are what packing makes."""

import json

import jax
import numpy as np
import pytest

from train import bench
from train.__main__ import main
from train.data.labels import IGNORED
from train.flops import stage_flops
from train.metrics.counts import count

RUN = bench.Run(rows=2, samples=2, steps=2, remat="none", scan=True, chunk=16, dtype="float32")


def test_a_tiny_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench.machine, "measure_matmul", lambda dtype: 1e9)
    path = tmp_path / "bench.json"
    arguments = ["tiny", "--rows", "1", "2", "--samples", "2", "--steps", "3", "--dtype", "float32", "--chunk", "16"]
    assert main(["bench", *arguments, "--json", str(path)]) == 0
    said = capsys.readouterr().err
    assert "tiny" in said and "MFU of 1 x" in said
    told = json.loads(path.read_text())
    one, two = told["results"]
    assert (one["rows"], two["rows"]) == (1, 2) and two["flops"] == 2 * one["flops"]
    for result in (one, two):
        assert np.isfinite(result["loss"]) and result["skipped"] == 0
        assert result["flops_per_second"] == pytest.approx(result["flops"] / result["step_seconds"])
        assert result["mfu"] == result["of_matmul"] == pytest.approx(result["flops_per_second"] / 1e9)


@pytest.mark.parametrize("name", bench.PRESETS)
def test_presets(name):
    """Their models can be built, without memory, and have the size that they are named after."""
    preset = bench.PRESETS[name]
    structure, trained, frozen = bench.abstract_model(preset, RUN)
    size = sum(value.size for value in [*trained.values(), *frozen.values()])
    expected = {"7b": 7.06e9, "3b": 3.1e9, "1.5b": 2.0e9, "0.3b": 3.6e8, "tiny": 1e5}[name.partition("-")[0]]
    assert size == pytest.approx(expected, rel=0.06)
    assert structure.paths.keys() == {*trained, *frozen}
    assert stage_flops(preset.config, preset.trained, lora=preset.lora).token > 4 * expected / 2


def test_memory_that_is_too_small_is_reported(monkeypatch):
    def fails(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(bench, "random_model", fails)
    assert bench.measured(bench.PRESETS["tiny"], RUN) == {"error": "out of memory"}
    monkeypatch.setattr(bench, "random_model", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bench.measured(bench.PRESETS["tiny"], RUN)


def test_rows_are_full_and_their_samples_whole():
    preset = bench.PRESETS["tiny"]
    batch = bench.random_batch(preset, RUN, np.random.default_rng(0))
    counts = count(batch)
    assert counts.tokens == counts.token_slots == 256 and counts.tiles == counts.tile_slots == 8
    assert counts.visual == 8 * 16 and counts.lengths == (64,) * 4
    learned = batch["targets"] != IGNORED
    np.testing.assert_array_equal(batch["targets"][:, :-1][learned[:, :-1]], batch["token_ids"][:, 1:][learned[:, :-1]])
    assert not learned[batch["source"] >= 0].reshape(-1, 32)[:, :-1].any(), "nothing is learned of pictures"
    ends = np.diff(batch["segments"], append=0) != 0
    assert not learned[ends].any() and batch["positions"][ends].tolist() == [63] * 4


def test_samples_that_do_not_fit(capsys):
    assert main(["bench", "tiny", "--samples", "3"]) == 3
    assert "3 samples cannot share 128 tokens" in capsys.readouterr().err
