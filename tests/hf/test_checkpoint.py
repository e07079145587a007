"""Folders as they come: split, linked from the Hub's cache, incomplete, damaged, hostile."""

import json
import os
import shutil

import numpy as np
import pytest
import torch

from tests.hf.models import build, save
from vila_jax.errors import CheckpointError, ConfigError
from vila_jax.hf.checkpoint import open_checkpoint
from vila_jax.hf.load import load_state

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    return save(build(), tmp_path_factory.mktemp("sharded"), max_shard_size="40KB")


@pytest.fixture
def folder(sharded, tmp_path):
    """A copy to break."""
    return shutil.copytree(sharded, tmp_path / "copy")


def _edit_index(folder, edit):
    index = json.loads((folder / INDEX).read_text())
    edit(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def _first_shard(folder):
    return min(folder.glob("*.safetensors"))


def test_gives_config_and_raw_files(folder):
    (folder / "preprocessor_config.json").write_text('{"crop_size": 7}')
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    checkpoint = open_checkpoint(folder)
    assert checkpoint.preprocessor == {"crop_size": 7}
    assert checkpoint.processor == {}
    assert checkpoint.config.eos_ids == (5, 6)
    assert checkpoint.raw_config["model_type"] == "llava"
    stored = sum(tensor.numel() * 4 for tensor in build().state_dict().values())
    assert checkpoint.nbytes == stored


def test_strings_are_paths_too(folder):
    assert open_checkpoint(str(folder)).config == open_checkpoint(folder).config


def test_one_file_wins_over_an_index(folder):
    save(build(), folder)
    assert list(open_checkpoint(folder).shards) == ["model.safetensors"]


def _truncate(folder):
    shard = _first_shard(folder)
    shard.write_bytes(shard.read_bytes()[:-10])


def _long_header(folder):
    shard = _first_shard(folder)
    shard.write_bytes((10**7).to_bytes(8, "little") + shard.read_bytes()[8:])


def _name_in_index(name):
    def edit(folder):
        _edit_index(folder, lambda weights: weights.update({"image_newline": name}))

    return edit


def _move_tensor(folder):
    def edit(weights):
        first, last = min(weights.values()), max(weights.values())
        weights[next(name for name, file in weights.items() if file == first)] = last

    _edit_index(folder, edit)


BROKEN = {
    "truncated shard": (_truncate, "truncated: tensor .* ends at byte"),
    "header longer than the file": (_long_header, "header claims 10000000 bytes"),
    "missing shard": (lambda folder: _first_shard(folder).unlink(), r"files that are missing: model-00001-of-\d+"),
    "traversal": (
        _name_in_index("../../etc/secret.safetensors"),
        "not safetensors files of its own folder: '../../e",
    ),
    "absolute": (_name_in_index("/etc/secret.safetensors"), "not safetensors files of its own folder"),
    "backslashes": (_name_in_index("..\\secret.safetensors"), "not safetensors files of its own folder"),
    "pickle in the index": (_name_in_index("pytorch_model.bin"), "not safetensors files of its own folder"),
    "tensor in another shard": (_move_tensor, "names tensors that their files do not hold: "),
    "tensor not listed": (
        lambda folder: _edit_index(folder, lambda weights: weights.pop("language_model.model.norm.weight")),
        "does not list tensors: language_model.model.norm.weight",
    ),
    "index is no JSON": (lambda folder: (folder / INDEX).write_text("{"), "not valid JSON"),
    "index without map": (lambda folder: (folder / INDEX).write_text("{}"), "no weight_map"),
    "index of numbers": (lambda folder: (folder / INDEX).write_text('{"weight_map": {"a": 1}}'), "no weight_map"),
    "no index": (lambda folder: (folder / INDEX).unlink(), "neither model.safetensors nor model.safetensors.index"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(name, folder):
    break_it, message = BROKEN[name]
    break_it(folder)
    with pytest.raises(CheckpointError, match=message) as error:
        open_checkpoint(folder)
    assert str(folder) in str(error.value)


CONFIGS = {
    "missing": (None, "there is no config.json"),
    "not JSON": (b"model_type: llava", "not valid JSON"),
    "binary": (b"\xff\xfe\x00", "not valid JSON"),
    "a list": (b"[]", "expected a JSON object, got list"),
    "another model": (b'{"model_type": "bert"}', "model_type.*'bert'"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_broken_config(name, folder):
    contents, message = CONFIGS[name]
    (folder / "config.json").unlink()
    if contents is not None:
        (folder / "config.json").write_bytes(contents)
    with pytest.raises(ConfigError, match=message) as error:
        open_checkpoint(folder)
    assert "config.json" in str(error.value)


def test_broken_generation_config(folder):
    (folder / "generation_config.json").write_text("nonsense")
    with pytest.raises(ConfigError, match=r"generation_config\.json: not valid JSON"):
        open_checkpoint(folder)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_refused_with_the_way_out(folder, file):
    for path in [*folder.glob("*.safetensors"), folder / INDEX]:
        path.unlink()
    torch.save({}, folder / file)
    with pytest.raises(CheckpointError, match=rf"pickles \({file}\).*run code.*from transformers .*save_pretrained"):
        open_checkpoint(folder)


def test_folder_without_weights(folder):
    for path in [*folder.glob("*.safetensors"), folder / INDEX]:
        path.unlink()
    with pytest.raises(CheckpointError, match=r"no weights here.*\.bin.*save_pretrained"):
        open_checkpoint(folder)


def test_folder_without_weights_can_be_described(folder):
    complete = open_checkpoint(folder).config
    for path in [*folder.glob("*.safetensors"), folder / INDEX]:
        path.unlink()
    described = open_checkpoint(folder, weights=False)
    assert described.config == complete
    assert (described.shards, described.nbytes) == ({}, 0)


def test_links_into_the_hub_cache_work(sharded, tmp_path):
    """The cache of huggingface_hub: `snapshots/<commit>/<file>` links to `../../blobs/<hash>`."""
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(sharded.iterdir())):
        shutil.copy(path, blobs / f"{number:040d}")
        (snapshot / path.name).symlink_to(os.path.join("..", "..", "blobs", f"{number:040d}"))
    checkpoint = open_checkpoint(snapshot)
    _, state = load_state(checkpoint, dtype=np.float32)
    wanted = build().state_dict()["model.language_model.norm.weight"]
    np.testing.assert_array_equal(state["decoder"]["norm"]["weight"].get_value(), wanted)


def test_links_out_of_the_folder_are_refused(folder, tmp_path):
    shard = _first_shard(folder)
    shard.rename(tmp_path / "elsewhere.safetensors")
    shard.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(CheckpointError, match="link that leaves the folder"):
        open_checkpoint(folder)


def test_a_linked_folder_works(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert open_checkpoint(tmp_path / "link").locations == open_checkpoint(folder).locations
