"""`vila-jax prune`: what it prints and writes, and with what code it ends."""

import json
import shutil

import numpy as np
import pytest

from vila_jax.bench.flops import prefill_flops, tower_flops
from vila_jax.bench.memory import parameter_counts
from vila_jax.hf.checkpoint import open_checkpoint


def test_an_object_about_before_and_after(vila_jax_cli, llava, tmp_path):
    target = tmp_path / "pruned"
    fractions = ("--ffn", 0.5, "--vision-ffn", 0.25, "--heads", 0.5)
    code, out, err = vila_jax_cli("prune", llava, target, *fractions, "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert (facts["folder"], facts["layout"], facts["files"]) == (str(target), "hf", ["model.safetensors"])
    for key, folder, sizes in (("before", llava, (24, 48, 4, 2)), ("after", target, (18, 24, 2, 1))):
        config, own = open_checkpoint(folder).config.vlm, facts[key]
        assert (own["vision_ffn"], own["ffn"], own["heads"], own["kv_heads"]) == sizes
        assert own["head_dim"] == 8
        assert own["parameters"] == sum(parameter_counts(config).values())
        assert own["tower_flops"] == tower_flops(config)
        assert own["prompt_flops"] == prefill_flops(config, 1, 16, 64)
        assert own["bytes"] == 4 * own["parameters"]  # float32, and nothing that is not built
    code, out, _ = vila_jax_cli("inspect", target, "--json")
    assert code == 0
    assert json.loads(out)["weights"]["usable"]


def test_a_table(vila_jax_cli, llava, tmp_path):
    code, out, err = vila_jax_cli("prune", llava, tmp_path / "pruned", "--ffn", 0.5)
    assert (code, err) == (0, "")
    rows = {line.split("  ")[0]: line.split() for line in out.splitlines()}
    assert rows["FFN channels, decoder"][-4:] == ["48", "24", "-50.0", "%"]
    assert rows["FFN channels, tower"][-4:] == ["24", "12", "-50.0", "%"]
    assert rows["key/value heads"][-3:] == ["2", "2", "—"]
    assert {"parameters", "tower, one tile", "prompt, 16 + 64 tokens", "files"} <= rows.keys()
    assert out.splitlines()[-1] == str(tmp_path / "pruned")


def test_what_pictures_excite(vila_jax_cli, llava, photo, tmp_path):
    """One file and a folder of two; other channels remain than by magnitude."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("a.png", "b.PNG"):
        shutil.copy(photo, pictures / name)
    (pictures / "notes.txt").write_text("no picture")
    more = ("--by", "activation", "--prompt", "what?", "--images", photo, pictures)
    code, out, _ = vila_jax_cli("prune", llava, tmp_path / "heard", "--ffn", 0.5, "--json", *more)
    assert code == 0
    assert json.loads(out)["after"]["ffn"] == 24
    assert vila_jax_cli("prune", llava, tmp_path / "weighed", "--ffn", 0.5)[0] == 0
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    heard, weighed = (_tensor(tmp_path / folder, name) for folder in ("heard", "weighed"))
    assert heard.shape == weighed.shape and not np.array_equal(heard, weighed)


def _tensor(folder, name):
    checkpoint = open_checkpoint(folder)
    return checkpoint.shards[checkpoint.locations[name]].read(name)


def test_a_folder_that_is_there(vila_jax_cli, llava, tmp_path):
    arguments = ("prune", llava, tmp_path / "pruned", "--ffn", 0.5)
    assert vila_jax_cli(*arguments)[0] == 0
    code, out, err = vila_jax_cli(*arguments)
    assert (code, out) == (4, "")
    assert "a checkpoint already" in err
    assert vila_jax_cli(*arguments, "--force")[0] == 0
    code, _, err = vila_jax_cli("prune", llava, llava, "--ffn", 0.5, "--force")
    assert code == 4 and "cannot be written over what it is made from" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--ffn", "1"), 3, "expected a fraction to remove"),
        (("--ffn", "nan"), 3, "expected a fraction to remove"),
        (("--heads", "0.3"), 3, "0.3 of 2 key/value heads is less than one"),
        (("--ffn", "half"), 2, "invalid float value"),
        (("--by", "luck"), 2, "invalid choice"),
        (("--ffn", "0.5", "--by", "activation"), 3, "no pictures to look at"),
        (("--ffn", "0.5", "--images", "."), 3, "Give both"),
        (("--ffn", "0.5", "--by", "activation", "--images", "nowhere"), 5, "no such file or folder"),
    ],
)
def test_wrong_use(vila_jax_cli, llava, tmp_path, arguments, code, message):
    found, out, err = vila_jax_cli("prune", llava, tmp_path / "pruned", *arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert not (tmp_path / "pruned").exists()


def test_a_folder_without_pictures(vila_jax_cli, llava, tmp_path):
    (tmp_path / "empty").mkdir()
    more = ("--by", "activation", "--images", tmp_path / "empty")
    code, _, err = vila_jax_cli("prune", llava, tmp_path / "pruned", "--ffn", 0.5, *more)
    assert code == 5 and "there are no pictures here" in err
