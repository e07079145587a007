"""A model in memory becomes a checkpoint: transformers' own classes load it, and only what was trained has changed."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from tests.hf.models import build, save
from tests.hf.vila import CHECKPOINTS, all_tensors, assert_equal_tensors, small_files
from tests.published import VILA
from vila_jax.errors import CheckpointError, ConfigError
from vila_jax.hf.checkpoint import open_checkpoint
from vila_jax.hf.config import parse_config
from vila_jax.hf.convert import convert
from vila_jax.hf.export import export
from vila_jax.hf.load import abstract_model, load_state
from vila_jax.hf.new_model import NewModel, written_config
from vila_jax.nn.params import dotted

V1, V1ARCH, VILA15 = "v1_single_folder", "v1arch_llama_clip_pad", "vila15_llama_siglip"

MODELS = {
    "llava_next": dict(next_=True, text="mistral"),
    "llava, siglip, tied, two layers": dict(
        vision="siglip", text="qwen2", tie_word_embeddings=True, vision_feature_layer=[-3, -2]
    ),
}


def _export(source, target, files=None, **options):
    """Writes a model as if it had no checkpoint."""
    checkpoint = open_checkpoint(source)
    _, state = load_state(checkpoint, dtype=np.float32)
    written = export(NewModel(checkpoint.raw_config, files or {}), state, target, to="hf", **options)
    assert written.tensors == len(all_tensors(target))
    return checkpoint, state


def _assert_equal(first: nnx.State, second: nnx.State):
    first, second = (dict(nnx.to_flat_state(state)) for state in (first, second))
    assert first.keys() == second.keys()
    for path, leaf in first.items():
        np.testing.assert_array_equal(leaf.get_value(), second[path].get_value(), err_msg=str(path))


@pytest.mark.parametrize("name", MODELS)
def test_transformers_loads_an_export_and_computes_the_same(name, tmp_path):
    theirs = build(**MODELS[name])
    _export(save(theirs, tmp_path / "theirs"), tmp_path / "ours")
    loaded, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    loaded.eval()
    state = theirs.state_dict()
    for key, value in loaded.state_dict().items():
        if "post_layernorm" not in key:
            torch.testing.assert_close(value, state[key], rtol=0, atol=0, msg=key)
    pixels = torch.randn(2, 3, 28, 28)
    features = []
    for model in (theirs, loaded):
        layer = model.config.vision_feature_layer
        states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        features.append(torch.cat([states[i] for i in (layer if isinstance(layer, list) else [layer])], dim=-1))
    torch.testing.assert_close(*features, rtol=0, atol=0)


@pytest.mark.parametrize("shard_bytes", [1, 60_000, 10**9])
def test_import_of_an_export_is_bit_equal(shard_bytes, tmp_path):
    _, state = _export(save(build(next_=True), tmp_path / "theirs"), tmp_path / "ours", max_shard_bytes=shard_bytes)
    files = list((tmp_path / "ours").glob("*.safetensors"))
    assert len(files) == 1 if shard_bytes == 10**9 else len(files) > 1
    again = open_checkpoint(tmp_path / "ours")
    _assert_equal(load_state(again, dtype=np.float32)[1], state)
    export(NewModel(again.raw_config), state, tmp_path / "twice", to="hf")
    assert (tmp_path / "twice" / "config.json").read_text() == (tmp_path / "ours" / "config.json").read_text()


def test_dtype_and_files(tmp_path):
    files = {"tokenizer.json": "{}", "tokenizer.model": b"\0"}
    _, state = _export(save(build(), tmp_path / "theirs"), tmp_path / "ours", files, dtype="bfloat16")
    assert (tmp_path / "ours" / "tokenizer.json").read_text() == "{}"
    assert (tmp_path / "ours" / "tokenizer.model").read_bytes() == b"\0"
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["dtype"] == "bfloat16"
    loaded = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "ours")
    assert loaded.dtype == torch.bfloat16
    again = load_state(open_checkpoint(tmp_path / "ours"), dtype=jnp.bfloat16)[1]
    _assert_equal(again, jax.tree.map(lambda x: x.astype(jnp.bfloat16), state))


def test_an_export_that_fails_leaves_nothing_behind(tmp_path):
    source = save(build(), tmp_path / "theirs")
    with pytest.raises(CheckpointError, match="not a plain file name"):
        _export(source, tmp_path / "ours", {"../escape": "x"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs"]


def test_an_existing_folder_is_replaced_only_on_demand(tmp_path):
    source = save(build(), tmp_path / "theirs")
    _export(source, tmp_path / "ours")
    with pytest.raises(CheckpointError, match="a checkpoint already"):
        _export(source, tmp_path / "ours")
    _export(source, tmp_path / "ours", {"new.txt": "x"}, overwrite=True)
    assert (tmp_path / "ours" / "new.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "theirs"]
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "diary.txt").write_text("x")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        _export(source, tmp_path / "precious", overwrite=True)


def test_a_state_of_another_model_is_refused(tmp_path):
    checkpoint = open_checkpoint(save(build(), tmp_path / "theirs"))
    _, state = load_state(checkpoint, dtype=np.float32)
    wider = checkpoint.raw_config | {"multimodal_projector_bias": False}
    with pytest.raises(CheckpointError, match=r"projector\.layers\.0\.bias"):
        export(NewModel(wider), state, tmp_path / "ours", to="hf")
    with pytest.raises(CheckpointError, match="do not fit the config"):
        export(open_checkpoint(CHECKPOINTS / VILA15), state, tmp_path / "ours", to="vila")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs"]


def test_a_new_model_is_a_llava(tmp_path):
    _, state = abstract_model(parse_config(VILA["VILA1.5-3b"]).vlm, np.float32)
    with pytest.raises(ConfigError, match="from the config of a LLaVA"):
        export(NewModel(VILA["VILA1.5-3b"]), state, tmp_path / "ours", to="hf")
    with pytest.raises(ConfigError, match=r"no form as `vila`\. Export it as `hf`, then"):
        export(NewModel(build().config.to_dict()), state, tmp_path / "ours", to="vila")
    with pytest.raises(ConfigError, match="style: the files of a new model bring their own chat template"):
        export(NewModel(build().config.to_dict()), state, tmp_path / "ours", to="hf", style="plain")
    assert not list(tmp_path.iterdir())


def test_a_tower_without_blocks_is_refused():
    config = build(vision_feature_layer=0).config.to_dict()
    with pytest.raises(ConfigError, match="vision_feature_layer: a tower without blocks cannot be exported"):
        written_config(config, parse_config(config).vlm, "float32")


def test_config_without_parts_is_completed():
    """The defaults that `vision_config` stands for when absent differ from those of a partial one."""
    config = {"model_type": "llava"}
    vlm = parse_config(config).vlm
    exported = written_config(config, vlm, "float32")
    again = parse_config(exported).vlm
    assert again.feature_layers == (23,)
    assert dataclasses.replace(again, vision=vlm.vision) == vlm
    assert dataclasses.replace(again.vision, num_layers=24) == vlm.vision
    theirs = transformers.LlavaConfig.from_dict(exported)
    assert (theirs.vision_config.num_hidden_layers, theirs.vision_feature_layer) == (23, -1)
    assert (theirs.vision_config.hidden_size, theirs.vision_config.image_size) == (1024, 336)


@pytest.mark.parametrize(("name", "to"), [(V1ARCH, "vila"), (V1, "llava"), (VILA15, "vila"), (V1ARCH, "hf")])
def test_a_training_step_changes_only_what_was_trained(name, to, tmp_path):
    checkpoint = open_checkpoint(CHECKPOINTS / name)
    _, state = load_state(checkpoint, dtype=np.float32)
    export(checkpoint, state, tmp_path / "before", to=to)
    convert(checkpoint, tmp_path / "converted", to=to)
    assert_equal_tensors(tmp_path / "before", tmp_path / "converted")
    trained, changed = "projector.layers.1.weight", []
    for path, leaf in nnx.to_flat_state(state):
        changed.append((path, leaf.replace(leaf.get_value() * 2) if dotted(path) == trained else leaf))
    export(checkpoint, nnx.from_flat_state(changed), tmp_path / "after", to=to)
    before, after = all_tensors(tmp_path / "before"), all_tensors(tmp_path / "after")
    different = [key for key in before if not torch.equal(before[key], after[key])]
    assert before.keys() == after.keys()
    assert len(different) == 1
    assert torch.equal(after[different[0]], before[different[0]] * 2)
    assert small_files(tmp_path / "before") == small_files(tmp_path / "after") == small_files(tmp_path / "converted")
