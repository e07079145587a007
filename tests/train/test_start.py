"""A stage starts from a run, a folder or nothing, and its export is what it started from, but for what was trained."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from flax import nnx
from safetensors.torch import load_file

import vila_jax
from tests.hf.vila import CHECKPOINTS, all_tensors, edit_json, small_files
from tests.hf.vila import copy as copied
from train.lora import Lora
from train.recipe import Compute, Data, New, Rows, Stage
from train.start import open_origin
from train.tokenizer import token_settings, tokenizer_files
from train.weights import Structure
from vila_jax.dist.mesh import make_mesh
from vila_jax.dist.rules import sharding_for
from vila_jax.errors import CheckpointError, ConfigError, HubError
from vila_jax.hf.checkpoint import open_checkpoint
from vila_jax.hf.load import load_state
from vila_jax.nn.params import dotted

V1, V1ARCH, VILA15, LITE = (
    "v1_single_folder",
    "v1arch_llama_clip_pad",
    "vila15_llama_siglip",
    "nvila_lite_qwen2_dynamic",
)


def stage(**changes) -> Stage:
    base = Stage("one", {"projector": 1e-3}, Rows(4, tokens=64, tiles=2), Data("a"), steps=10)
    return dataclasses.replace(base, **changes)


def new_model(**vision) -> New:
    """A LLaVA with the words of the embedded model and CLIP's processor."""
    ids = token_settings()
    tower = {"model_type": "clip_vision_model", "hidden_size": 20, "intermediate_size": 28, "num_hidden_layers": 3}
    tower |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 7, "hidden_act": "quick_gelu"} | vision
    text = {"model_type": "llama", "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": ids["vocab_size"]}
    config = {"model_type": "llava", "vision_config": tower, "text_config": text, "vision_feature_layer": -2}
    config |= {"vision_feature_select_strategy": "default", "image_token_index": ids["image_token_index"]}
    square = {"height": 28, "width": 28}
    pictures = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 28}, "crop_size": square}
    pictures |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}
    return New(config, tokenizer_files() | {"preprocessor_config.json": json.dumps(pictures)})


def moved(origin, weights):
    """As after training: what is trained has other values."""
    return {n: value + 0.25 if origin.is_trained(n) else value for n, value in weights.items()}


def flat(folder, dtype=np.float32):
    _, state = load_state(open_checkpoint(folder), dtype=dtype)
    return {dotted(path): np.asarray(leaf.get_value()) for path, leaf in nnx.to_flat_state(state)}


@pytest.mark.parametrize("name", [V1, V1ARCH, VILA15, LITE])
def test_a_folder_comes_back_bit_for_bit_where_it_was_not_trained(name, tmp_path):
    origin = open_origin(stage(start=str(CHECKPOINTS / name)), tmp_path / "runs")
    weights = origin.load()
    origin.export(moved(origin, weights), tmp_path / "export")
    ours, theirs = all_tensors(tmp_path / "export"), all_tensors(CHECKPOINTS / name)
    assert ours.keys() == theirs.keys()
    for tensor, value in theirs.items():
        same = ours[tensor].dtype == value.dtype and bool((ours[tensor] == value).all())
        assert same != ("mm_projector" in tensor), tensor
    before = small_files(CHECKPOINTS / name)
    assert small_files(tmp_path / "export").keys() == before.keys()
    for path, value in flat(tmp_path / "export").items():
        if path.startswith("projector"):
            np.testing.assert_allclose(value, np.asarray(weights[path]) + 0.25, rtol=1e-2, err_msg=path)


def test_dtypes_and_what_is_abstract(tmp_path):
    origin = open_origin(stage(start=str(CHECKPOINTS / VILA15)), tmp_path)
    weights = origin.load()
    for name, value in weights.items():
        assert value.dtype == (jnp.float32 if name.startswith("projector") else jnp.bfloat16), name
    structure, shapes = Structure.of(origin.abstract())
    assert {n: (x.shape, x.dtype) for n, x in shapes.items()} == {n: (x.shape, x.dtype) for n, x in weights.items()}
    assert structure.graphdef == Structure.of(structure.model(weights))[0].graphdef
    exact = flat(CHECKPOINTS / VILA15)
    np.testing.assert_array_equal(weights["projector.layers.0.weight"], exact["projector.layers.0.weight"])
    single = open_origin(stage(start=str(CHECKPOINTS / VILA15)), tmp_path, dtype=jnp.float32).load()
    assert {value.dtype for value in single.values()} == {jnp.dtype(jnp.float32)}


def test_weights_are_read_to_their_places_on_a_mesh(tmp_path):
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    both = {"lora": Lora(rank=2), "learning_rate": {"projector": 1.0, "decoder": 1.0}}
    for start in (stage(start=str(CHECKPOINTS / V1ARCH), **both), stage(new=new_model(), **both)):
        origin = open_origin(start, tmp_path, mesh=mesh)
        structure, _ = Structure.of(origin.abstract())
        alone = open_origin(start, tmp_path).load()
        for name, value in origin.load().items():
            expected = sharding_for(structure.axes[name], value.shape, mesh)
            assert value.sharding.is_equivalent_to(expected, value.ndim), name
            np.testing.assert_array_equal(np.asarray(value), np.asarray(alone[name]), err_msg=name)
            assert value.dtype == alone[name].dtype


def test_from_a_finished_run(tmp_path):
    first = open_origin(stage(name="vila/align", start=str(CHECKPOINTS / VILA15)), tmp_path)
    run = tmp_path / "vila" / "align"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text('{"steps": 40}')
    (run / "metrics.jsonl").write_text('{"step": 11, "loss": 1}\n{"step": 12, "loss": 1}\n{"st')
    again = stage(name="vila/sft", start="vila/align")
    with pytest.raises(ConfigError, match=r"'vila/align' has not finished \(step 12 of 40\)"):
        open_origin(again, tmp_path)
    (run / "finished.json").write_text("{}")
    with pytest.raises(CheckpointError, match="its export is gone"):
        open_origin(again, tmp_path)
    weights = moved(first, first.load())
    first.export(weights, run / "export", dtype="float32")
    second = open_origin(again, tmp_path, dtype=jnp.float32)
    name = "projector.layers.0.weight"
    np.testing.assert_array_equal(second.load()[name], weights[name])
    with pytest.raises(HubError, match="Did you mean 'vila/align'"):
        open_origin(stage(start="vila/aligm"), tmp_path)
    with pytest.raises(ConfigError, match="start from itself"):
        open_origin(stage(start="one"), tmp_path)


def test_a_new_model(tmp_path):
    start = stage(new=new_model(), learning_rate={"tower": 1.0, "projector": 1.0, "decoder": 1.0}, name="nano/tower")
    origin = open_origin(start, tmp_path)
    weights = origin.load()
    assert float(jnp.std(weights["decoder.layers.0.mlp.up.weight"])) == pytest.approx(24**-0.5, rel=0.2)
    again, other = (open_origin(dataclasses.replace(start, seed=seed), tmp_path).load() for seed in (0, 1))
    for name, value in weights.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)
        if "embedding" in name:
            assert not np.array_equal(value, other[name]), name
    heads = {"heads.colors.weight": jnp.ones(3)}  # a head of the training alone
    export = tmp_path / "nano" / "tower" / "export"
    origin.export(weights | heads, export, dtype="float32")
    for name, value in flat(export).items():
        np.testing.assert_array_equal(value, weights[name], err_msg=name)
    model = vila_jax.from_pretrained(str(export))
    assert model.checkpoint.config.vlm.decoder == origin.vlm.decoder
    _, info = transformers.LlavaForConditionalGeneration.from_pretrained(export, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    (export.parent / "finished.json").write_text("{}")
    following = open_origin(stage(start="nano/tower"), tmp_path)
    assert following.form.render([{"role": "user", "content": "hi"}], following.style) == "USER: hi ASSISTANT:"
    plain = open_origin(stage(start="nano/tower", data=Data("a", style="plain")), tmp_path)
    said = [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "a ring"}]
    assert plain.form.render(said, plain.style, add_generation_prompt=False) == "<image>a ring\n"


def test_low_rank_additions_are_merged_and_all_else_is_left(tmp_path):
    start = stage(
        start=str(CHECKPOINTS / VILA15),
        lora=Lora(rank=2, alpha=6),
        learning_rate={"projector": 1.0, "decoder": 1.0},
        compute=Compute(dtype="float32"),
    )
    origin = open_origin(start, tmp_path)
    weights = {n: v + 0.1 if "lora.up" in n else v for n, v in origin.load().items()}
    assert {n for n in weights if origin.is_trained(n) and not n.startswith("projector")} == {
        n for n in weights if ".lora." in n
    }
    origin.export(weights, tmp_path / "export", dtype="float32")
    after, before = flat(tmp_path / "export"), flat(CHECKPOINTS / VILA15)
    assert after.keys() == before.keys()
    for name, value in after.items():
        linear = name.removesuffix(".weight")
        if f"{linear}.lora.up" in weights:
            product = np.asarray(weights[f"{linear}.lora.up"]) @ np.asarray(weights[f"{linear}.lora.down"]) * 3
            np.testing.assert_allclose(value, before[name] + product, rtol=1e-5, atol=1e-6, err_msg=name)
            assert np.abs(product).max() > 1e-3
        else:
            np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_stacks_are_written_layer_by_layer(tmp_path):
    groups = {"tower": 1.0, "decoder": 1.0}
    origin = open_origin(stage(new=new_model(), learning_rate=groups), tmp_path)
    weights = origin.load()
    stacked = {}
    for name, value in weights.items():
        head, _, rest = name.partition(".layers.")
        if head == "projector" or not rest:
            stacked[name] = value
        elif rest.startswith("0."):
            layers = [weights[f"{head}.layers.{i}{rest[1:]}"] for i in range(2)]
            stacked[f"{head}.layers.*{rest[1:]}"] = jnp.stack(layers)
    assert len(stacked) < len(weights)
    for n, given in enumerate((weights, stacked)):
        origin.export(given, tmp_path / f"export{n}", dtype="bfloat16")
    for name, tensor in load_file(tmp_path / "export0" / "model.safetensors").items():
        assert bool((tensor == load_file(tmp_path / "export1" / "model.safetensors")[name]).all()), name


def test_a_style_of_the_stage(tmp_path):
    origin = open_origin(stage(start=str(CHECKPOINTS / VILA15), data=Data("a", style="plain")), tmp_path)
    said = [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "a cat"}]
    assert origin.form.render(said, origin.style, add_generation_prompt=False) == "<image>a cat\n"
    with pytest.raises(ConfigError, match="unknown conversation style"):
        open_origin(stage(start=str(CHECKPOINTS / VILA15), data=Data("a", style="plane")), tmp_path)


def test_soft_targets_are_among_the_time_tokens(tmp_path):
    folder = copied(LITE, tmp_path)
    origin = open_origin(stage(start=str(folder)), tmp_path)
    assert origin.soft_targets(None) is None
    with pytest.raises(ConfigError, match="has no time tokens"):
        origin.soft_targets(1.0)
    backend = json.loads((folder / "llm" / "tokenizer.json").read_text())
    spare = max(token["id"] for token in backend["added_tokens"]) + 1
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    backend["added_tokens"] += [{"id": spare + t, "content": f"<t{t}>", **flags} for t in range(3)]
    (folder / "llm" / "tokenizer.json").write_text(json.dumps(backend))
    origin = open_origin(stage(start=str(folder)), tmp_path)
    targets = origin.soft_targets(2.0)
    assert tuple(targets.tokens) == (spare, spare + 1, spare + 2) and targets.std == 2.0
    edit_json(folder / "config.json", time_token_ids=[7, 5])
    assert tuple(open_origin(stage(start=str(folder)), tmp_path).soft_targets(1.0).tokens) == (7, 5)
    edit_json(folder / "config.json", time_token_ids=[7, 5_000])
    with pytest.raises(ConfigError, match=r"of .* embeddings"):
        open_origin(stage(start=str(folder)), tmp_path).soft_targets(1.0)


def test_what_is_wrong_is_found_before_anything_is_trained(tmp_path):
    with pytest.raises(ConfigError, match="nothing to start from"):
        open_origin(stage(), tmp_path)
    folder = copied(VILA15, tmp_path)
    edit_json(folder / "config.json", vision_resolution=84, interpolate_mode="linear")
    edit_json(folder / "vision_tower" / "preprocessor_config.json", size={"height": 84, "width": 84})
    open_origin(stage(start=str(folder)), tmp_path)
    with pytest.raises(ConfigError, match="no export can describe"):
        open_origin(stage(start=str(folder), learning_rate={"tower": 1.0}), tmp_path)
    (folder / "mm_projector" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError):
        open_origin(stage(start=str(folder)), tmp_path)


def test_weights_of_another_model_are_not_exported(tmp_path):
    origin = open_origin(stage(start=str(CHECKPOINTS / VILA15)), tmp_path)
    weights = origin.load()
    with pytest.raises(CheckpointError, match="do not fit"):
        origin.export(weights | {"projector.layers.0.weight": jnp.ones((2, 2))}, tmp_path / "export")
    assert not (tmp_path / "export").exists()
