"""VILA1.5-40b in small: a checkpoint with an InternViT tower from its folder to answers, and back into a folder.

Oracles: of the tower the recorded reference (tests/golden/vila/modules/intern_vit.npz), of the projector six lines of
torch, of the decoder transformers.
"""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional

from tests.hf.vila import (
    all_tensors,
    assert_equal_tensors,
    copy,
    edit_json,
    small_files,
    with_intern_vit,
    with_llava_projector,
)
from vila_jax.cli.main import main
from vila_jax.errors import ConfigError
from vila_jax.hf.checkpoint import open_checkpoint
from vila_jax.hf.convert import convert
from vila_jax.model import from_pretrained
from vila_jax.vision.preprocess import ProcessedImage

PROMPT = "<|im_start|>user\n<image>\nWhat is this?<|im_end|><|im_start|>assistant\n"


def _written(tmp_path):
    """The checkpoint, with the rope of the published language model."""
    folder, golden = with_intern_vit(copy("vila15_llama_siglip", tmp_path))
    edit_json(folder / "llm" / "config.json", rope_theta=5_000_000.0)
    return folder.rename(tmp_path / "VILA1.5-40b"), golden


@pytest.fixture
def checkpoint(tmp_path):
    return _written(tmp_path)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder, golden = _written(tmp_path_factory.mktemp("intern"))
    return from_pretrained(folder, dtype="float32"), folder, golden


def _features(model, pixels):
    """Of tiles of any content; their geometry is not looked at."""
    geometry = model.preprocessor.geometry(pixels.shape[2:])
    return np.concatenate([model.features(ProcessedImage(tile[None], geometry)) for tile in pixels])


@pytest.mark.parametrize("layer", [-1, -2])
def test_features(checkpoint, layer):
    folder, golden = checkpoint
    edit_json(folder / "config.json", mm_vision_select_layer=layer)
    features = _features(from_pretrained(folder, dtype="float32"), golden["input"])
    np.testing.assert_allclose(features, golden[f"features_layer{layer}_patch"], atol=1e-4)


def test_features_of_another_resolution(checkpoint):
    folder, golden = checkpoint
    edit_json(folder / "vision_tower" / "config.json", image_size=84)
    features = _features(from_pretrained(folder, dtype="float32"), golden["input_84"])
    np.testing.assert_allclose(features, golden["features_84_layer-1_patch"], atol=1e-4)


@pytest.mark.parametrize("shape", ["wide", "tall"])
def test_pixels(loaded, shape):
    model, _, golden = loaded
    ours = model.preprocessor(Image.fromarray(golden[f"image_{shape}"])).pixels
    np.testing.assert_allclose(ours, golden[f"pixels56_{shape}"][None], atol=2e-6)


def _projected(features, folder):
    """`mlp_downsample` of the branch vila1.5: windows of 2 x 2 patches, which come column by column."""
    weights = {
        name: tensor.float() for name, tensor in load_file(folder / "mm_projector" / "model.safetensors").items()
    }
    grid = torch.tensor(features).reshape(2, 2, 2, 2, -1)  # window row, row inside, window column, column inside
    tokens = grid.permute(2, 0, 1, 3, 4).reshape(4, -1)
    tokens = functional.layer_norm(tokens, tokens.shape[-1:], weights["layers.1.weight"], weights["layers.1.bias"])
    tokens = functional.gelu(functional.linear(tokens, weights["layers.2.weight"], weights["layers.2.bias"]))
    return functional.linear(tokens, weights["layers.4.weight"], weights["layers.4.bias"])


def test_from_the_folder_to_answers(loaded):
    """Embeddings, logits and greedy ids against torch, which is given our features: those are checked above."""
    model, folder, golden = loaded
    photo = Image.fromarray(golden["image_wide"])
    [features] = _features(model, model.preprocessor(photo).pixels)
    decoder = transformers.LlamaForCausalLM.from_pretrained(folder / "llm", dtype=torch.float32).eval()
    ids = model.token_ids(PROMPT, [photo])
    at = ids.index(model.form.image_id)
    with torch.inference_mode():
        before, after = (decoder.model.embed_tokens(torch.tensor(part)) for part in (ids[:at], ids[at + 1 :]))
        embeddings = torch.cat([before, _projected(features, folder), after])
        logits = decoder(inputs_embeds=embeddings[None]).logits[0]
        greedy = decoder.generate(inputs_embeds=embeddings[None], max_new_tokens=8, do_sample=False)[0].tolist()
    np.testing.assert_allclose(model.embeddings(PROMPT, [photo]), embeddings, atol=1e-4)
    np.testing.assert_allclose(model.logits(PROMPT, [photo]), logits, atol=1e-4)
    answer = model.generate(PROMPT, [photo], max_new_tokens=8)
    assert list(answer.token_ids) == greedy
    assert answer.usage.visual_tokens_full == answer.usage.visual_tokens_kept == 4
    assert model.generate(PROMPT, [photo], max_new_tokens=2, budget="hired:0.5").usage.visual_tokens_kept == 2


def test_inspect(checkpoint, capsys):
    folder, _ = checkpoint
    assert main(["inspect", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["architecture"] == "VILA1.5 (InternViT + Llama)"
    assert facts["weights"]["usable"] and facts["weights"]["problem"] is None
    assert facts["weights"]["tensors"] == facts["weights"]["tensors_used"] == len(all_tensors(folder))
    tower = facts["vision_tower"]
    assert (tower["kind"], tower["blocks_built"], tower["blocks_in_config"]) == ("intern", 3, 3)
    assert facts["prompts"]["styles"] == ["hermes_2"]
    assert facts["era"]["name"] == "vila1.5" and facts["era"]["token_order"] == "column by column"
    assert facts["pictures"][0]["tokens"]["all"] == 4
    assert main(["inspect", str(folder)]) == 0
    assert "InternViT, tiles of 56 px in 4 x 4 patches" in " ".join(capsys.readouterr().out.split())


def test_convert_to_its_own_layout(checkpoint, tmp_path):
    folder, _ = checkpoint
    convert(open_checkpoint(folder), tmp_path / "ours", to="vila")
    assert_equal_tensors(folder, tmp_path / "ours")
    assert small_files(folder) == small_files(tmp_path / "ours")
    assert open_checkpoint(tmp_path / "ours").config == open_checkpoint(folder).config


@pytest.mark.parametrize(("to", "name"), [("hf", "Hugging Face's LLaVA"), ("llava", "layout of the original LLaVA")])
def test_no_other_layout_has_a_place_for_it(checkpoint, to, name, tmp_path):
    folder, _ = checkpoint
    with pytest.raises(
        ConfigError, match=rf"{name} has no place for .*windows of 2 x 2.*InternViT tower\. Use `--to vila`"
    ):
        convert(open_checkpoint(folder), tmp_path / "ours", to=to)
    with_llava_projector(folder)  # the tower alone is reason enough
    with pytest.raises(ConfigError, match=rf"{name} has no place for an InternViT tower\."):
        convert(open_checkpoint(folder), tmp_path / "ours", to=to)
    assert [path.name for path in tmp_path.iterdir()] == ["VILA1.5-40b"]
