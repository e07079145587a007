"""LoRA: what is merged equals the product computed here, under every spelling of the names that training code wrote."""

import json

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.hf.vila import CHECKPOINTS, all_tensors
from vila_jax.errors import CheckpointError, ConfigError
from vila_jax.hf.checkpoint import open_checkpoint
from vila_jax.hf.convert import convert
from vila_jax.model import from_pretrained

V1, V1ARCH = "v1_single_folder", "v1arch_llama_clip_pad"
RANK, ALPHA = 4, 10
SPELLINGS = {  # checkpoint -> prefixes of decoder, tower and projector in the training code
    V1: ("base_model.model.model", "base_model.model.model.vision_tower.vision_tower", "model.mm_projector.0"),
    V1ARCH: ("base_model.model.llm.model", "base_model.model.vision_tower.vision_tower", "mm_projector.layers.0"),
}
LOCATIONS = {
    V1: ("model", "model.vision_tower.vision_tower", "model.mm_projector.0"),
    V1ARCH: ("llm/model", "vision_tower", "mm_projector/layers.0"),
}
LAYERS = ("layers.1.self_attn.q_proj", "layers.0.mlp.down_proj")
BLOCK = "vision_model.encoder.layers.0.mlp.fc1"


def _folder(path, name, *, extra=None, whole=None, **config):
    """A LoRA folder with random pairs for two layers of the decoder and one of the tower."""
    path.mkdir()
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": ["q_proj"],
        "bias": "none",
    } | config
    (path / "adapter_config.json").write_text(json.dumps(config))
    decoder, tower, _ = SPELLINGS[name]
    torch.manual_seed(3)
    tensors = {}
    shapes = {
        f"{decoder}.{LAYERS[0]}": (64, 64),
        f"{decoder}.{LAYERS[1]}": (64, 96),
        f"{tower}.{BLOCK}": _shape(name, BLOCK),
    }
    for module, (out, into) in shapes.items():
        tensors[f"{module}.lora_A.weight"] = torch.randn(RANK, into)
        tensors[f"{module}.lora_B.weight"] = torch.randn(out, RANK)
    save_file(tensors | (extra or {}), path / "adapter_model.safetensors")
    if whole is not None:
        save_file(whole, path / "non_lora_trainables.safetensors")
    return path, tensors


def _shape(name, block):
    location = LOCATIONS[name][1]
    separator = "/" if name == V1ARCH else "."
    return tuple(all_tensors(CHECKPOINTS / name)[f"{location}{separator}{block}.weight"].shape)


def _merged(name, lora, target):
    checkpoint = open_checkpoint(CHECKPOINTS / name)
    return convert(checkpoint, target, to="llava" if name == V1 else "vila", lora=lora)


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize("rs", [False, True])
def test_merged_weights(name, rs, tmp_path):
    bias = torch.randn(64)
    projector = SPELLINGS[name][2]
    lora, pairs = _folder(tmp_path / "lora", name, whole={f"base_model.model.{projector}.bias": bias}, use_rslora=rs)
    written = _merged(name, lora, tmp_path / "ours")
    assert written.merged == 4
    before, after = all_tensors(CHECKPOINTS / name), all_tensors(tmp_path / "ours")
    expected = dict(before)
    scale = ALPHA / RANK**0.5 if rs else ALPHA / RANK
    separator = "/" if name == V1ARCH else "."
    decoder, tower, place = LOCATIONS[name]
    for location, module in (
        *((f"{decoder}.{layer}", f"{SPELLINGS[name][0]}.{layer}") for layer in LAYERS),
        (f"{tower}{separator}{BLOCK}", f"{SPELLINGS[name][1]}.{BLOCK}"),
    ):
        down, up = (pairs[f"{module}.lora_{half}.weight"].numpy().astype(np.float64) for half in "AB")
        weight = before[f"{location}.weight"].float().numpy() + scale * np.einsum("or,ri->oi", up, down)
        expected[f"{location}.weight"] = weight.astype(np.float32)
    expected[f"{place}.bias"] = bias.numpy()
    assert after.keys() == expected.keys()
    for key, value in after.items():
        assert value.dtype == before[key].dtype
        if isinstance(expected[key], torch.Tensor):
            assert torch.equal(value, expected[key]), key
        else:  # rounded to bfloat16 at the very end
            rounded = expected[key].astype(ml_dtypes.bfloat16).astype(np.float32)
            np.testing.assert_allclose(value.float().numpy(), rounded, rtol=2**-7, atol=1e-5, err_msg=key)


def test_the_model_answers_as_with_the_product(tmp_path):
    """A pair for the head moves the logits by the product of its matrices and what the head reads."""
    lora, _ = _folder(tmp_path / "lora", V1ARCH)
    torch.manual_seed(5)
    down, up = torch.randn(RANK, 64) * 0.1, torch.randn(400, RANK)
    key = "base_model.model.llm.lm_head.lora_{}.weight"
    save_file({key.format("A"): down, key.format("B"): up}, lora / "adapter_model.safetensors")
    checkpoint = open_checkpoint(CHECKPOINTS / V1ARCH)
    convert(checkpoint, tmp_path / "plain", to="vila", dtype="float32")
    convert(checkpoint, tmp_path / "merged", to="vila", lora=lora, dtype="float32")
    logits = [from_pretrained(tmp_path / name, dtype="float32").logits("hello world") for name in ("plain", "merged")]
    head = all_tensors(CHECKPOINTS / V1ARCH)["llm/lm_head.weight"].double().numpy()
    hidden = np.linalg.lstsq(head, logits[0].T.astype(np.float64), rcond=None)[0]
    moved = ALPHA / RANK * up.double().numpy() @ (down.double().numpy() @ hidden)
    np.testing.assert_allclose(logits[1], logits[0] + moved.T, atol=1e-3)


BROKEN = {
    "DoRA": ({"use_dora": True}, {}, "use_dora: True is not supported"),
    "saved modules": ({"modules_to_save": ["lm_head"]}, {}, "modules_to_save"),
    "biases": ({"bias": "all"}, {}, "bias: 'all' is not supported"),
    "ranks of its own": ({"rank_pattern": {"q_proj": 8}}, {}, "rank_pattern"),
    "another rank": ({"r": 8}, {}, r"expected shape"),
    "another method": ({"peft_type": "IA3"}, {}, "peft_type"),
    "magnitude": ({}, {"base_model.model.llm.x.lora_magnitude_vector": (3,)}, "neither"),
    "half a pair": ({}, {"base_model.model.llm.lm_head.lora_A.weight": (RANK, 64)}, "no pair of lora_A and lora_B"),
    "no such weight": (
        {},
        {
            "base_model.model.llm.model.layers.0.nothing.lora_A.weight": (RANK, 64),
            "base_model.model.llm.model.layers.0.nothing.lora_B.weight": (64, RANK),
        },
        "belong to no weight",
    ),
    "no such layer": (
        {},
        {
            "base_model.model.llm.model.layers.7.mlp.up_proj.lora_A.weight": (RANK, 64),
            "base_model.model.llm.model.layers.7.mlp.up_proj.lora_B.weight": (96, RANK),
        },
        r"no such weights: decoder\.layers\.7\.mlp\.up\.weight",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_what_cannot_be_merged(fault, tmp_path):
    config, shapes, message = BROKEN[fault]
    extra = {name: torch.zeros(shape) for name, shape in shapes.items()}
    lora, _ = _folder(tmp_path / "lora", V1ARCH, extra=extra, **config)
    with pytest.raises((CheckpointError, ConfigError), match=message):
        _merged(V1ARCH, lora, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_pickles_are_refused(tmp_path):
    lora, _ = _folder(tmp_path / "lora", V1ARCH)
    (lora / "non_lora_trainables.bin").write_bytes(b"never opened")
    with pytest.raises(CheckpointError, match=r"non_lora_trainables\.bin: this is a pickle.*weights_only=True"):
        _merged(V1ARCH, lora, tmp_path / "ours")
    (lora / "adapter_config.json").unlink()
    with pytest.raises(ConfigError, match=r"no adapter_config\.json"):
        _merged(V1ARCH, lora, tmp_path / "ours")
