"""A stage that begins with a language model, a vision tower and a new projector; and what transformers makes of it."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import vila_jax
from tests.hf.models import TEXT, VISION
from tests.hf.vila import CHECKPOINTS, all_tensors, edit_json
from tests.train.test_start import flat, moved, stage
from train.recipe import Parts
from train.start import open_origin
from train.tokenizer import build_tokenizer, tokenizer_files
from train.weights import Structure
from vila_jax.errors import CheckpointError, ConfigError

WORDS = build_tokenizer().get_vocab_size() - 1  # without the image token
TOWERS = {
    "clip": (transformers.CLIPVisionConfig, transformers.CLIPVisionModel),
    "siglip": (transformers.SiglipVisionConfig, transformers.SiglipVisionModel),
}


def random(model, folder, scale=0.3):
    """Every weight random, those that start as ones or zeros too."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * scale)
    model.save_pretrained(folder)
    return folder


def without_image_token(files):
    """The words of the embedded model as those of a language model that has never seen a picture."""
    backend = json.loads(files["tokenizer.json"])
    vocabulary = {word: i for word, i in backend["model"]["vocab"].items() if word != "<image>"}
    ids = {word: i for i, word in enumerate(sorted(vocabulary, key=vocabulary.get))}
    backend["model"]["vocab"] = ids
    backend["added_tokens"] = [t | {"id": ids[t["content"]]} for t in backend["added_tokens"] if t["content"] in ids]
    config = json.loads(files["tokenizer_config.json"])
    del config["extra_special_tokens"]
    return {"tokenizer.json": json.dumps(backend), "tokenizer_config.json": json.dumps(config)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    for kind, (config, model) in TOWERS.items():
        random(model(config(**VISION)), root / kind)
    text = TEXT | {"vocab_size": WORDS, "tie_word_embeddings": False}
    for kind, model in (("llama", transformers.LlamaForCausalLM), ("qwen2", transformers.Qwen2ForCausalLM)):
        random(model(model.config_class(**text)), root / kind)
        for name, data in without_image_token(tokenizer_files()).items():
            (root / kind / name).write_text(data)
    return root


def parts(folders, decoder="llama", tower="clip", layout="llava", projector="mlp2x_gelu", **changes):
    return Parts(str(folders / decoder), str(folders / tower), layout, projector, **changes)


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("decoder", ["llama", "qwen2"])
def test_transformers_computes_the_same_of_a_llava(folders, tower, decoder, tmp_path):
    start = stage(parts=parts(folders, decoder, tower), learning_rate={"projector": 1.0, "decoder": 1.0})
    origin = open_origin(start, tmp_path, dtype=jnp.float32)
    weights = moved(origin, origin.load())
    origin.export(weights, tmp_path / "export", dtype="float32")
    theirs, info = transformers.LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "export", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    token = theirs.config.image_token_id
    assert token == origin.form.image_id == WORDS  # a row of its own, behind the words
    ids = np.array([[1, 6, *[token] * 16, 9, 12, 7]])
    pixels = np.random.default_rng(0).standard_normal((1, 3, 28, 28)).astype(np.float32)
    with torch.no_grad():
        expected = theirs.eval()(input_ids=torch.tensor(ids), pixel_values=torch.tensor(pixels)).logits.numpy()
    structure, _ = Structure.of(origin.abstract())
    model = structure.model(weights)
    features, _ = model.encode(jnp.asarray(pixels))
    visual = model.project(model.merge(features))
    source = np.where(ids == token, np.cumsum(ids == token, axis=1) - 1, -1)
    embedded = model.splice(jnp.asarray(ids), jnp.asarray(source), visual.reshape(-1, visual.shape[-1]))
    positions = jnp.arange(ids.shape[1])[None]
    hidden, _ = model.decoder(embedded, positions, segments=jnp.ones_like(positions))
    np.testing.assert_allclose(model.decoder.logits(hidden), expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("tower", TOWERS)
def test_parts_are_as_they_were_and_a_new_row_is_the_mean(folders, tower, tmp_path):
    origin = open_origin(stage(parts=parts(folders, "llama", tower)), tmp_path, dtype=jnp.float32)
    origin.export(moved(origin, origin.load()), tmp_path / "export")
    ours = all_tensors(tmp_path / "export")
    llm, eyes = (load_file(folders / part / "model.safetensors") for part in ("llama", tower))
    for name, value in llm.items():
        found = ours.pop(f"language_model.{name}")
        torch.testing.assert_close(found[: len(value)], value, rtol=0, atol=0, msg=name)
        if len(found) > len(value):
            mean = torch.from_numpy(value.numpy().mean(0))[None].expand(len(found) - len(value), -1)
            torch.testing.assert_close(found[len(value) :], mean, rtol=1e-6, atol=1e-7)
            assert name in ("model.embed_tokens.weight", "lm_head.weight")
    for name, value in eyes.items():
        own = name if name.startswith("vision_model.") else f"vision_model.{name}"
        torch.testing.assert_close(ours.pop(f"vision_tower.{own}"), value, rtol=0, atol=0, msg=name)
    assert {name.split(".")[0] for name in ours} == {"multi_modal_projector"}


def test_a_vila_out_of_parts_is_where_the_next_stage_starts(folders, tmp_path):
    first = stage(name="v/align", parts=parts(folders, "llama", "siglip", "vila", "mlp_downsample", style="llama_3"))
    origin = open_origin(first, tmp_path)
    assert (origin.checkpoint.config.era, origin.checkpoint.config.layout) == ("vila1.5", "folders")
    assert origin.vlm.projector.widths == (4 * 24, 36, 36)
    assert origin.preprocessor.values_config.tile_size == 28
    weights = origin.load()
    assert weights["projector.layers.0.weight"].dtype == jnp.float32
    again = open_origin(first, tmp_path).load()
    np.testing.assert_array_equal(weights["projector.layers.0.weight"], again["projector.layers.0.weight"])
    other = open_origin(dataclasses.replace(first, seed=1), tmp_path).load()
    assert not np.array_equal(weights["projector.layers.0.weight"], other["projector.layers.0.weight"])
    export = tmp_path / "v" / "align" / "export"
    origin.export(moved(origin, weights), export)
    assert (export / "vision_tower" / "preprocessor_config.json").exists()
    (export.parent / "finished.json").write_text("{}")
    second = open_origin(stage(name="v/sft", start="v/align"), tmp_path)
    assert second.style == origin.style and "<|start_header_id|>" in second.style.user
    assert vila_jax.from_pretrained(str(export)).style == origin.style
    for name, value in second.load().items():
        expected = moved(origin, weights)[name]
        np.testing.assert_array_equal(value, np.asarray(expected).astype(value.dtype), err_msg=name)


def test_an_nvila_out_of_parts(folders, tmp_path):
    chosen = parts(folders, "qwen2", "siglip", "nvila", "mlp_downsample_3x3_fix", style="qwen2", pictures="dynamic")
    origin = open_origin(stage(parts=chosen), tmp_path)
    assert origin.checkpoint.config.era == "nvila" and origin.form.after_image
    assert origin.preprocessor.config.max_tiles == 12
    origin.export(origin.load(), tmp_path / "export")
    assert vila_jax.from_pretrained(str(tmp_path / "export")).checkpoint.config.era == "nvila"


def test_half_of_a_whole_clip(folders, tmp_path):
    text = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = transformers.CLIPConfig(vision_config=VISION, text_config=text | {"num_attention_heads": 2})
    random(transformers.CLIPModel(config), tmp_path / "whole")
    chosen = dataclasses.replace(parts(folders), tower=str(tmp_path / "whole"))
    origin = open_origin(stage(parts=chosen), tmp_path)
    origin.export(origin.load(), tmp_path / "export")
    assert not any("text" in name and "vision" in name for name in all_tensors(tmp_path / "export"))
    tower = load_file(tmp_path / "whole" / "model.safetensors")
    found = flat(tmp_path / "export")["vision_tower.embeddings.class_token"]
    np.testing.assert_array_equal(found, tower["vision_model.embeddings.class_embedding"].numpy())


def test_parts_that_do_not_fit(folders, tmp_path):
    def refused(error, match, **changes):
        with pytest.raises(error, match=match):
            open_origin(stage(parts=dataclasses.replace(parts(folders), **changes)), tmp_path / "runs")

    refused(
        ConfigError, "this is no language model: its model_type is 'clip_vision_model'", decoder=str(folders / "clip")
    )
    refused(ConfigError, "this is no vision tower: its model_type is 'llama'", tower=str(folders / "llama"))
    refused(ConfigError, "unknown layout", layout="lava")
    refused(ConfigError, "projector", projector="mlp9x")
    refused(ConfigError, "no place for a projector that merges windows", projector="mlp_downsample")
    refused(ConfigError, "make a model of nvila", decoder=str(folders / "qwen2"), layout="vila")
    refused(ConfigError, "unknown conversation style", style="plane")
    refused(ConfigError, "image_aspect_ratio", pictures="stretch")
    whole = str(CHECKPOINTS / "v1_single_folder")
    refused(ConfigError, "no language model", decoder=whole)

    broken = shutil.copytree(folders / "llama", tmp_path / "broken")
    edit_json(broken / "config.json", hidden_size=48, head_dim=6)
    refused(CheckpointError, "tensors do not fit", decoder=str(broken))
    edit_json(broken / "config.json", hidden_size=36, vocab_size=WORDS - 4)
    tensors = load_file(broken / "model.safetensors")
    cut = {n: t[: WORDS - 4].clone() if len(t) == WORDS else t for n, t in tensors.items()}
    save_file(cut, broken / "model.safetensors")
    refused(CheckpointError, "the tokenizer has .* tokens", decoder=str(broken))
