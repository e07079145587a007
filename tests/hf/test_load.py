"""Every tensor of a published checkpoint lands where transformers puts it, whatever its spelling, sharding or dtype."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.torch import load_file, save_file

from tests.hf.models import build, save
from vila_jax.dist.mesh import make_mesh
from vila_jax.errors import CheckpointError
from vila_jax.hf.checkpoint import open_checkpoint
from vila_jax.hf.keys import LLAVA, canonical
from vila_jax.hf.load import abstract_model, load_state
from vila_jax.nn.params import dotted

MODELS = {
    "biases, gqa": dict(text_args={"head_dim": 10, "attention_bias": True, "mlp_bias": True}),
    "next, mistral": dict(next_=True, text="mistral"),
    "siglip, qwen2, tied": dict(vision="siglip", text="qwen2", tie_word_embeddings=True),
    "last layer among others": dict(vision_feature_layer=[0, -1]),
    "next, tie in the text alone": dict(next_=True, text_args={"tie_word_embeddings": True}),
}


def in_memory_name(published: str) -> str:
    """The name of a published tensor in the `state_dict` of today's transformers."""
    if published == "language_model.lm_head.weight":
        return "lm_head.weight"
    name = published.replace("language_model.model.", "language_model.").replace("tower.vision_model.", "tower.")
    return f"model.{name}"


def assert_holds(state: nnx.State, model: torch.nn.Module, *roundings: torch.dtype):
    """Every weight of `state` equals the one of `model`, after the given casts."""
    theirs = model.state_dict()
    flat = nnx.to_flat_state(state)
    assert len(flat) > 30
    for path, leaf in flat:
        name = LLAVA.to_hf(dotted(path))
        wanted = functools.reduce(torch.Tensor.to, roundings, theirs[in_memory_name(name)]).float()
        np.testing.assert_array_equal(np.asarray(leaf.get_value(), np.float32), wanted, err_msg=name)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A LLaVA-NeXT as transformers holds it, and its checkpoint."""
    model = build(next_=True)
    return model, save(model, tmp_path_factory.mktemp("llava"))


@pytest.fixture
def edited(llava, tmp_path):
    """Writes a copy of the checkpoint with edited tensors and config."""

    def write(edit_tensors=lambda tensors: tensors, **config):
        tensors = edit_tensors(load_file(llava[1] / "model.safetensors"))
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        original = json.loads((llava[1] / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(original | config))
        return tmp_path

    return write


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor(name, tmp_path):
    model = build(**MODELS[name])
    graphdef, state = load_state(open_checkpoint(save(model, tmp_path)), dtype=np.float32)
    assert_holds(state, model)
    assert nnx.merge(graphdef, state).decoder.head is None or not model.config.tie_word_embeddings


def test_shards(llava, tmp_path):
    save(llava[0], tmp_path, max_shard_size="30KB")
    checkpoint = open_checkpoint(tmp_path)
    assert len(checkpoint.shards) > 3
    assert_holds(load_state(checkpoint, dtype=np.float32)[1], llava[0])


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("wanted", [torch.bfloat16, torch.float32])
def test_dtypes(llava, edited, stored, wanted):
    folder = edited(lambda tensors: {name: tensor.to(stored) for name, tensor in tensors.items()})
    dtype = {torch.bfloat16: jnp.bfloat16, torch.float32: jnp.float32}[wanted]
    _, state = load_state(open_checkpoint(folder), dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {np.dtype(dtype)}
    assert_holds(state, llava[0], stored, wanted)


def _old(name: str) -> str:
    """transformers < 5, and everything published by llava-hf."""
    return re.sub(r"^vision_tower\.", "vision_tower.vision_model.", name)


SPELLINGS = {
    "as today": lambda name: name,
    "as published": _old,
    "in memory": lambda name: in_memory_name(_old(name)),
    "in memory, tower wrapped": lambda name: in_memory_name(_old(name)).replace(
        "model.vision_tower.", "model.vision_tower.vision_model."
    ),
    "language model without wrapper": lambda name: name.replace("language_model.model.", "language_model."),
    "head outside": lambda name: name.replace("language_model.lm_head", "lm_head"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings(llava, edited, spelling):
    rename = SPELLINGS[spelling]
    folder = edited(lambda tensors: {rename(name): tensor for name, tensor in tensors.items()})
    names = open_checkpoint(folder).locations
    assert spelling == "as today" or set(names) != set(load_file(llava[1] / "model.safetensors"))
    assert_holds(load_state(open_checkpoint(folder), dtype=np.float32)[1], llava[0])


def test_key_table_goes_both_ways():
    for vision, text in (("clip", "llama"), ("siglip", "qwen2")):
        config = _config(vision=vision, text=text)
        paths = [dotted(path) for path, _ in nnx.to_flat_state(abstract_model(config, np.float32)[1])]
        names = [LLAVA.to_hf(path) for path in paths]
        assert [LLAVA.from_hf(name) for name in names] == paths
        assert [canonical(name) for name in names] == names
        assert len(set(names)) == len(names)
    assert LLAVA.from_hf("language_model.model.layers.x.mlp.up_proj.weight") is None
    assert LLAVA.to_hf("decoder.layers.0.mlp.up.scale") is None


def _config(**parts):
    from vila_jax.hf.config import parse_config

    return parse_config(build(**parts).config.to_dict()).vlm


def test_tensors_without_use_are_recognised(llava, edited):
    def add(tensors):
        extra = {
            "vision_tower.vision_model.embeddings.position_ids": torch.arange(17)[None],
            "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3),
        }
        return tensors | extra

    assert_holds(load_state(open_checkpoint(edited(add)), dtype=np.float32)[1], llava[0])


def test_head_of_a_tied_model_is_not_used(edited):
    _, state = load_state(open_checkpoint(edited(tie_word_embeddings=True)), dtype=np.float32)
    assert "head" not in state["decoder"]


def test_head_that_is_missing_is_tied_if_the_text_says_so(llava, edited):
    def drop(tensors):
        return {name: tensor for name, tensor in tensors.items() if "lm_head" not in name}

    with pytest.raises(CheckpointError, match=r"1 missing: language_model\.lm_head\.weight"):
        load_state(open_checkpoint(edited(drop)), dtype=np.float32)
    text = llava[0].config.text_config.to_dict() | {"tie_word_embeddings": True, "dtype": None}
    _, state = load_state(open_checkpoint(edited(drop, text_config=text)), dtype=np.float32)
    assert "head" not in state["decoder"]


def _without(part):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def _with(name, tensor):
    return lambda tensors: tensors | {name: tensor}


MISFITS = {
    "missing": (_without("linear_2"), {}, r"2 missing: multi_modal_projector.linear_2.bias, .*linear_2.weight"),
    "block missing": (_without("layers.1.self_attn.q_proj"), {}, r"missing: .*layers.1.self_attn.q_proj"),
    "unexpected": (_with("language_model.model.layers.2.x", torch.ones(1)), {}, r"1 unexpected: .*layers.2.x"),
    "adapter": (_with("image_newline.lora_A", torch.ones(1)), {}, r"1 unexpected: image_newline.lora_A"),
    "block beyond the tower": (
        _with("vision_tower.encoder.layers.3.layer_norm1.bias", torch.ones(24)),
        {},
        r"unexpected: vision_tower.encoder.layers.3",
    ),
    "mis-shaped": (
        _with("image_newline", torch.ones(35)),
        {},
        r"1 of the wrong shape: image_newline \(expected \[36\], got \[35\]\)",
    ),
    "twice": (_with("model.image_newline", torch.ones(36)), {}, r"1 present twice: .*image_newline"),
    "bias not asked for": (
        lambda tensors: tensors,
        {"multimodal_projector_bias": False},
        r"2 unexpected: .*linear_1.bias",
    ),
    "integers": (
        _with("image_newline", torch.ones(36, dtype=torch.int8)),
        {},
        r"image_newline has dtype I8, which is not supported.*F32, F16, BF16",
    ),
    "fp8": (_with("image_newline", torch.ones(36).to(torch.float8_e4m3fn)), {}, r"dtype F8_E4M3.*dequantized"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_misfit_is_refused_before_anything_is_read(name, edited, monkeypatch):
    edit, config, message = MISFITS[name]
    checkpoint = open_checkpoint(edited(edit, **config))
    monkeypatch.setattr("vila_jax.hf.safetensors.Shard.read", lambda *_: pytest.fail("a tensor was read"))
    for place in ("device_put", "make_array_from_callback"):
        monkeypatch.setattr(jax, place, lambda *_: pytest.fail("device memory was touched"))
    with pytest.raises(CheckpointError, match=message):
        load_state(checkpoint, dtype=np.float32)


def test_long_lists_are_cut(edited):
    with pytest.raises(CheckpointError, match=r"missing: .* and \d+ more"):
        load_state(open_checkpoint(edited(_without("language_model"))), dtype=np.float32)


def test_progress_counts_every_byte(llava):
    checkpoint = open_checkpoint(llava[1])
    calls = []
    load_state(checkpoint, dtype=np.float32, on_tensor=lambda *call: calls.append(call))
    done = [call[1] for call in calls]
    used = sum(leaf.numel() * 4 for name, leaf in llava[0].state_dict().items() if not _skipped(name))
    assert done == sorted(done)
    assert done[-1] == used
    assert {call[2] for call in calls} == {used}
    assert {call[0] for call in calls} <= set(checkpoint.locations)


def _skipped(name: str) -> bool:
    return "post_layernorm" in name or "vision_tower.encoder.layers.2" in name


@pytest.mark.parametrize("axes", [{"tensor": 2, "fsdp": 4}, {"tensor": 8}, {"fsdp": 2, "data": 4}])
def test_sharded_over_a_mesh(llava, axes):
    mesh = make_mesh(axes)
    _, state = load_state(open_checkpoint(llava[1]), dtype=np.float32, mesh=mesh)
    assert_holds(state, llava[0])
    weight = state["decoder"]["layers"][0]["mlp"]["gate"]["weight"].get_value()
    rows, columns = weight.shape
    tensor, fsdp = axes.get("tensor", 1), axes.get("fsdp", 1)
    local = (rows // tensor if rows % tensor == 0 else rows, columns // fsdp if columns % fsdp == 0 else columns)
    assert {shard.data.shape for shard in weight.addressable_shards} == {local}
    assert len(weight.addressable_shards) == 8


def test_weights_outlive_their_files(llava, edited):
    folder = edited()
    _, state = load_state(open_checkpoint(folder), dtype=np.float32)
    size = (folder / "model.safetensors").stat().st_size
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(b"\xff" * size)
    assert_holds(state, llava[0])


def test_a_file_that_shrinks_after_opening_is_an_error(edited):
    folder = edited()
    checkpoint = open_checkpoint(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(CheckpointError, match="ends in the middle of a tensor"):
        load_state(checkpoint, dtype=np.float32)


def test_checkpoint_is_frozen(llava):
    checkpoint = open_checkpoint(llava[1])
    with pytest.raises(dataclasses.FrozenInstanceError):
        checkpoint.folder = llava[1]
