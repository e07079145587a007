"""A token scorer in a checkpoint: added in every layout, converted with the rest, and in nobody's way."""

import json

import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from tests.hf.models import build, save
from tests.hf.vila import CHECKPOINTS, all_tensors, copy, edit_tensors, small_files
from vila_jax.errors import CheckpointError
from vila_jax.hf.add_scorer import add_scorer
from vila_jax.hf.checkpoint import open_checkpoint
from vila_jax.hf.convert import convert
from vila_jax.hf.load import load_state
from vila_jax.nn.params import dotted

V1, V1ARCH, VILA15 = "v1_single_folder", "v1arch_llama_clip_pad", "vila15_llama_siglip"
HIDDEN = 5


def scorer_for(checkpoint, hidden: int = HIDDEN) -> dict[str, np.ndarray]:
    """Random weights of a scorer of a model, by dotted path."""
    width, rng = checkpoint.config.vlm.projector.widths[0], np.random.default_rng(hidden)
    shapes = {"norm.weight": (width,), "norm.bias": (width,), "fc1.weight": (hidden, width), "fc1.bias": (hidden,)}
    shapes |= {"fc2.weight": (1, hidden), "fc2.bias": (1,)}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def loaded_scorer(folder) -> dict[str, np.ndarray]:
    state = load_state(open_checkpoint(folder), dtype=np.float32)[1]
    weights = {dotted(path): np.asarray(leaf.get_value()) for path, leaf in nnx.to_flat_state(state)}
    return {name.removeprefix("scorer."): value for name, value in weights.items() if name.startswith("scorer.")}


@pytest.fixture
def source(request, tmp_path):
    """A checkpoint by name; `hf` is one of transformers' own making."""
    return save(build(next_=True), tmp_path / "hf") if request.param == "hf" else CHECKPOINTS / request.param


@pytest.mark.parametrize("source", ["hf", V1, V1ARCH, VILA15], indirect=True)
def test_everything_else_stays_as_it_is(source, tmp_path):
    checkpoint = open_checkpoint(source)
    weights = scorer_for(checkpoint)
    written = add_scorer(checkpoint, weights, tmp_path / "ours")
    before, after = all_tensors(source), all_tensors(tmp_path / "ours")
    added = {name: tensor for name, tensor in after.items() if "token_scorer" in name}
    assert len(added) == 6 and after.keys() - added.keys() == before.keys() and written.tensors == len(after)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=0, equal_nan=True)
    assert {tensor.dtype for tensor in added.values()} == {
        tensor.dtype for name, tensor in before.items() if "embed_tokens" in name
    }
    theirs, ours = small_files(source), small_files(tmp_path / "ours")
    configs = json.loads(theirs.pop("config.json")), json.loads(ours.pop("config.json"))
    assert configs[1] == configs[0] | {"token_scorer": {"hidden_size": HIDDEN}}
    assert theirs == ours
    assert open_checkpoint(tmp_path / "ours").config.vlm.scorer_width == HIDDEN
    found = loaded_scorer(tmp_path / "ours")
    dtype = next(iter(added.values())).dtype
    for name, value in weights.items():
        np.testing.assert_array_equal(found[name], torch.from_numpy(value).to(dtype).float().numpy())


@pytest.mark.parametrize(("name", "way"), [(V1, ("vila", "llava")), (V1, ("hf", "llava")), (V1ARCH, ("hf", "vila"))])
def test_it_is_converted_with_the_rest(name, way, tmp_path):
    add_scorer(open_checkpoint(CHECKPOINTS / name), scorer_for(open_checkpoint(CHECKPOINTS / name)), tmp_path / "first")
    folder, expected = tmp_path / "first", loaded_scorer(tmp_path / "first")
    for to in way:
        convert(open_checkpoint(folder), tmp_path / to, to=to)
        folder = tmp_path / to
        found = loaded_scorer(folder)
        assert found.keys() == expected.keys()
        for path, value in expected.items():
            np.testing.assert_array_equal(found[path], value)


def test_a_second_scorer_takes_the_place_of_the_first(tmp_path):
    checkpoint = open_checkpoint(CHECKPOINTS / VILA15)
    add_scorer(checkpoint, scorer_for(checkpoint), tmp_path / "first")
    add_scorer(open_checkpoint(tmp_path / "first"), scorer_for(checkpoint, hidden=3), tmp_path / "second")
    assert open_checkpoint(tmp_path / "second").config.vlm.scorer_width == 3
    assert loaded_scorer(tmp_path / "second")["fc1.weight"].shape[0] == 3


def test_transformers_passes_over_it(tmp_path):
    model = build(next_=True)
    theirs = save(model, tmp_path / "theirs")
    add_scorer(open_checkpoint(theirs), scorer_for(open_checkpoint(theirs)), tmp_path / "ours")
    again, info = transformers.LlavaNextForConditionalGeneration.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["mismatched_keys"]
    assert len(info["unexpected_keys"]) == 6 and all(key.startswith("token_scorer.") for key in info["unexpected_keys"])
    state = again.state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0)


def test_what_is_missing_or_in_the_way_is_named(tmp_path):
    checkpoint = open_checkpoint(CHECKPOINTS / VILA15)
    folder = copy(VILA15, tmp_path)
    with pytest.raises(CheckpointError, match="cannot be written over what it is made from"):
        add_scorer(open_checkpoint(folder), scorer_for(checkpoint), folder, overwrite=True)
    add_scorer(checkpoint, scorer_for(checkpoint), tmp_path / "ours")
    shard = next((tmp_path / "ours" / "token_scorer").glob("*.safetensors"))
    edit_tensors(shard, lambda tensors: {name: t for name, t in tensors.items() if name != "fc2.bias"})
    with pytest.raises(CheckpointError, match=r"1 missing: token_scorer/fc2\.bias"):
        load_state(open_checkpoint(tmp_path / "ours"), dtype=np.float32)
