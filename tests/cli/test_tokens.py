"""`vila-jax tokens`: the patches of the reference, drawn and counted, without the decoder."""

import json

import numpy as np
import pytest
from PIL import Image

from vila_jax.hf.safetensors import Shard

MARGIN, ABOVE, CELL = 28, 28 + 16 + 24 + 96, 30  # of a single view of 24 x 24 patches, in pixels


def test_the_patches_of_the_reference_are_bright(vila_jax_cli, golden, tmp_path):
    folder, out = golden / "hired_e2e", tmp_path / "overlay.png"
    arguments = ("--image", folder / "llava15_china.png", "--budget", "hired:0.2,variant=code", "--out", out)
    code, text, err = vila_jax_cli("tokens", folder / "llava15_seed11", *arguments, "--json")
    assert (code, err) == (0, "")
    assert json.loads(text) == {
        "out": str(out),
        "visual_tokens": 576,
        "overview": True,
        "budgets": [{"budget": "hired:0.2,variant=code", "kept": 115, "kept_per_tile": [115]}],
    }
    expected = np.zeros(576, bool)
    expected[np.load(folder / "llava15_china.npz")["r0.2_a0.5/packed_source"]] = True
    drawn = np.asarray(Image.open(out).convert("RGB"), np.float32)
    drawn = drawn[ABOVE : ABOVE + 24 * CELL, MARGIN : MARGIN + 24 * CELL]
    cells = drawn.reshape(24, CELL, 24, CELL, 3).transpose(0, 2, 1, 3, 4).reshape(576, CELL, CELL, 3)
    # The corner of a kept patch has an outline or bright neighbours; of dark patches nothing is brighter than 81.
    bright = cells[:, 2:-2, 2:-2].max((1, 2, 3)) > 81
    assert (bright & ~expected).sum() <= 4  # the label covers some patches
    assert (expected & ~bright).sum() <= 4  # dark by themselves


def test_budgets_are_counted_tile_by_tile(vila_jax_cli, llava_next, wide_photo, tmp_path):
    arguments = ("--image", wide_photo, "--out", tmp_path / "a.png")
    budgets = ("--budget", "hired:0.25", "--budget", "random:7", "--budget", "hired:1")
    _, text, _ = vila_jax_cli("tokens", llava_next, *arguments, *budgets, "--json")
    quarter, seven, everything = json.loads(text)["budgets"]
    assert quarter["kept"] == sum(quarter["kept_per_tile"]) == 12  # of 3 x 16 patches
    assert seven["kept"] == sum(seven["kept_per_tile"]) == 7
    assert everything["kept"] == json.loads(text)["visual_tokens"]  # newlines included
    assert len(quarter["kept_per_tile"]) == 3


def test_the_table_and_the_file(vila_jax_cli, llava_next, photo, tmp_path):
    out = tmp_path / "a.png"
    code, text, err = vila_jax_cli("tokens", llava_next, "--image", photo, "--budget", "hired:0.2", "--out", out)
    assert (code, err) == (0, "")
    assert "16 of 88" in text  # int(0.2 x 5 x 16) of 16 + 8 x 9
    assert str(out) in text
    with Image.open(out) as image:
        assert image.format == "PNG"


def test_the_decoder_is_not_loaded(vila_jax_cli, llava, photo, tmp_path, monkeypatch):
    names, read = [], Shard.read
    monkeypatch.setattr(Shard, "read", lambda self, name, *rest: names.append(name) or read(self, name, *rest))
    vila_jax_cli("tokens", llava, "--image", photo, "--budget", "hired:0.2", "--out", tmp_path / "a.png")
    assert "vision_tower.vision_model.encoder.layers.1.self_attn.q_proj.weight" in names
    assert not [name for name in names if "language_model.model.layers." in name]


@pytest.mark.parametrize(
    ("change", "expected", "named"),
    [
        ({"--out": "no/such/folder/a.png"}, 1, "no folder"),
        ({"--image": "missing.png"}, 5, "no such file"),
        ({"--budget": "hired:17"}, 7, "has only 16"),
        ({"--budget": "hired:0.2,alpha=7"}, 7, "alpha"),
    ],
)
def test_broken_requests(vila_jax_cli, llava, photo, tmp_path, monkeypatch, change, expected, named):
    monkeypatch.chdir(tmp_path)
    given = {"--image": photo, "--budget": "hired:0.2", "--out": "a.png"} | change
    code, out, err = vila_jax_cli("tokens", llava, *(word for pair in given.items() for word in pair), "--json")
    assert (code, out) == (expected, "")
    assert named in err
    assert not list(tmp_path.iterdir())


def test_merged_tokens_are_counted_where_they_come_from(vila_jax_cli, llava_next, wide_photo, tmp_path):
    arguments = ("--image", wide_photo, "--out", tmp_path / "a.png")
    specs = ("visionzip:12", "prumerge:0.25", "prumerge+:0.25", "pool:12", "downsample:16")
    budgets = [word for spec in specs for word in ("--budget", spec)]
    code, text, err = vila_jax_cli("tokens", llava_next, *arguments, *budgets, "--json")
    assert (code, err) == (0, "")
    rows = json.loads(text)["budgets"]
    assert [row["kept"] for row in rows] == [12, 12, 12, 12, 16]
    assert [sum(row["kept_per_tile"]) for row in rows] == [12, 12, 12, 12, 16]
    assert [len(row["kept_per_tile"]) for row in rows] == [3, 3, 3, 3, 1]


def test_what_the_last_layer_of_the_decoder_reads(vila_jax_cli, llava_next, wide_photo, tmp_path):
    arguments = ("--image", wide_photo, "--out", tmp_path / "a.png", "--prompt", "w5 w6")
    budgets = ("--budget", "fastv:0.5,layer=1", "--budget", "random:20+fastv:0.5,layer=1")
    code, text, err = vila_jax_cli("tokens", llava_next, *arguments, *budgets, "--json")
    assert (code, err) == (0, "")
    half, ten = json.loads(text)["budgets"]
    assert ten["kept"] == sum(ten["kept_per_tile"]) == 10
    assert 0 < half["kept"] <= json.loads(text)["visual_tokens"] // 2  # newlines may be among what is left
    code, _, err = vila_jax_cli("tokens", llava_next, *arguments, "--budget", "sparse:0.5,layer=1")
    assert code == 7 and "leaves all tokens where they are" in err
