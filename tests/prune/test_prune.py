"""Pruned checkpoints compute what their sources compute with the pruned channels and heads set to zero.

The oracle is transformers: which units fall is found out anew from its weights or activations, their contributions are
set to zero in it, and the pruned checkpoint is loaded into it as well.
"""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from tests.hf.models import TEXT, VISION, build, save
from tests.hf.vila import CHECKPOINTS, NAMES, all_tensors, assert_equal_tensors, copy, edit_tensors, small_files
from tests.prune.oracle import Inputs, kept_units, logits, masking
from vila_jax.errors import CheckpointError, ConfigError
from vila_jax.hf.checkpoint import open_checkpoint
from vila_jax.model import from_pretrained
from vila_jax.prune import Sparsity, prune

MODELS = {
    "clip-llama": {"vision": "clip", "text": "llama"},
    "siglip-qwen2": {"vision": "siglip", "text": "qwen2"},
    "next-mistral": {"vision": "clip", "text": "mistral", "next_": True},
    "biased-llama": {"text_args": {"attention_bias": True, "mlp_bias": True, "head_dim": 10}},
}
SPARSITY = Sparsity(ffn=0.3, vision_ffn=0.45, heads=0.5)  # 44 -> 31, 20 -> 11, 6 heads in 2 groups -> 3 in 1


@pytest.fixture(scope="module", params=MODELS)
def pruned(request, tmp_path_factory):
    """A model of transformers, the folder that it is saved in, and the folder of the pruned checkpoint."""
    model, folder = build(**MODELS[request.param]), tmp_path_factory.mktemp("models")
    prune(open_checkpoint(save(model, folder / "source")), folder / "pruned", SPARSITY)
    return model, folder / "source", folder / "pruned"


def test_logits_are_those_of_the_source_without_the_weakest(pruned):
    model, _, folder = pruned
    theirs, info = type(model).from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    text, vision = theirs.config.text_config, theirs.config.vision_config
    sizes = (text.intermediate_size, vision.intermediate_size, text.num_attention_heads, text.num_key_value_heads)
    assert sizes == (31, 11, 3, 1)
    assert text.head_dim == model.model.language_model.layers[0].self_attn.head_dim
    inputs = Inputs.of(model)
    with masking(model, kept_units(model, 31, 11, 1)):
        expected = logits(model, inputs)
    assert np.abs(expected - logits(model, inputs)).max() > 0.1  # what falls is missed
    np.testing.assert_allclose(logits(theirs, inputs), expected, atol=2e-4, rtol=1e-4)


def test_we_load_it_and_compute_the_same(pruned):
    model, _, folder = pruned
    theirs = type(model).from_pretrained(folder, dtype=torch.float32).eval()
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config.vlm.decoder.num_heads == 3
    inputs = Inputs.of(model)
    np.testing.assert_allclose(inputs.through(checkpoint), logits(theirs, inputs), atol=1e-4, rtol=1e-4)


def test_what_remains_is_the_source_bit_by_bit(pruned):
    """Rows and columns that remain keep their order, and tensors that lose nothing are copied."""
    _, source, folder = pruned
    before, after = all_tensors(source), all_tensors(folder)
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        if tensor.shape == before[name].shape:
            assert torch.equal(tensor, before[name]), name
        else:
            [axis] = [i for i, (a, b) in enumerate(zip(tensor.shape, before[name].shape, strict=True)) if a != b]
            rows, source_rows = (t.movedim(axis, 0).reshape(t.shape[axis], -1).tolist() for t in (tensor, before[name]))
            found = [source_rows.index(row) for row in rows]
            assert found == sorted(set(found)), name


@pytest.mark.parametrize("name", NAMES)
def test_vila_layouts(name, tmp_path):
    """Ours loads it; each layer of the tower and the decoder equals the source's with the columns that fall at zero."""
    done = prune(open_checkpoint(CHECKPOINTS / name), tmp_path / "pruned", Sparsity(ffn=0.25, heads=0.5))
    checkpoint = open_checkpoint(tmp_path / "pruned")
    assert checkpoint.config.vlm == done.after != done.before
    decoder = done.before.decoder
    assert done.after.decoder.num_kv_heads == decoder.num_kv_heads // 2
    assert done.after.decoder.head_dim == decoder.head_dim
    copied, gone = copy(name, tmp_path), all_tensors(tmp_path / "pruned")
    for path in copied.rglob("*.safetensors"):
        prefix = "" if path.parent == copied else f"{path.parent.name}/"
        edit_tensors(path, lambda held, prefix=prefix: {k: _zeroed(k, v, gone[prefix + k]) for k, v in held.items()})
    photo = Image.fromarray(np.random.default_rng(3).integers(0, 255, (90, 130, 3), np.uint8))
    ours, zeroed = (
        from_pretrained(folder, dtype="float32").logits("What is <image> this?", [photo])
        for folder in (tmp_path / "pruned", copied)
    )
    np.testing.assert_allclose(ours, zeroed, atol=1e-4, rtol=1e-4)


def _zeroed(name: str, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """The source's last layer of a part with the columns at zero that the pruned one lacks."""
    if before.shape == after.shape or not name.endswith(("fc2.weight", "down_proj.weight", "o_proj.weight")):
        return before
    columns = {column.float().numpy().tobytes() for column in after.T}
    kept = torch.tensor([column.float().numpy().tobytes() in columns for column in before.T])
    assert kept.sum() == len(after.T)
    return before * kept


@pytest.mark.parametrize("name", [*NAMES, "llava"])
def test_a_sparsity_of_zero_is_the_source(name, tmp_path):
    source = save(build(), tmp_path / "source") if name == "llava" else CHECKPOINTS / name
    prune(open_checkpoint(source), tmp_path / "same", Sparsity())
    assert_equal_tensors(source, tmp_path / "same")
    assert small_files(tmp_path / "same") == small_files(source)


def test_a_pooling_head_is_cut_as_well(tmp_path):
    """transformers makes SigLIP's pooling head as wide as the blocks."""
    source = save(build("siglip", vision_args={"vision_use_head": True}), tmp_path / "source")
    [name] = [name for name in all_tensors(source) if name.endswith("head.mlp.fc1.weight")]
    prune(open_checkpoint(source), tmp_path / "pruned", Sparsity(vision_ffn=0.5))
    assert all_tensors(tmp_path / "pruned")[name].shape == (10, VISION["hidden_size"])


def test_configs_that_say_nothing_of_a_part(tmp_path):
    """What the default of a class said is written out, the tower of a config without one too."""
    source = save(build(), tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    del config["text_config"]["head_dim"]
    (source / "config.json").write_text(json.dumps(config))
    prune(open_checkpoint(source), tmp_path / "pruned", Sparsity(heads=0.5))
    text = json.loads((tmp_path / "pruned" / "config.json").read_text())["text_config"]
    assert (text["head_dim"], text["num_attention_heads"], text["num_key_value_heads"]) == (6, 3, 1)


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    source = open_checkpoint(save(build(), tmp_path / "source"))

    def fail(*_):
        raise OSError("no space left on device")

    with pytest.raises(CheckpointError, match="no space left"):
        prune(source, tmp_path / "pruned", Sparsity(ffn=0.5), on_tensor=fail)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("sparsity", "message"),
    [
        (Sparsity(ffn=1.0), "ffn: expected a fraction to remove, from 0 up to but without 1, got 1.0"),
        (Sparsity(ffn=-0.1), "got -0.1"),
        (Sparsity(vision_ffn=float("nan")), "vision_ffn: .* got nan"),
        (Sparsity(vision_ffn=0.01), "0.01 of 20 FFN channels is less than one. .* is 0.05"),
        (Sparsity(heads=0.4), "0.4 of 2 key/value heads is less than one. .* is 0.5"),
    ],
)
def test_fractions_that_cannot_be(sparsity, message, tmp_path):
    checkpoint = open_checkpoint(save(build(), tmp_path / "source"))
    with pytest.raises(ConfigError, match=message):
        prune(checkpoint, tmp_path / "pruned", sparsity)
    assert not (tmp_path / "pruned").exists()


def test_heads_that_no_llama_may_have(tmp_path):
    """transformers refuses a Llama whose heads do not divide its width; a Qwen2 may have any number."""
    heads = {"num_attention_heads": 6, "num_key_value_heads": 6}
    with pytest.raises(Exception, match="not a multiple of the number of attention"):
        transformers.LlamaConfig(**TEXT | {"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 6})
    llama = open_checkpoint(save(build(text_args=heads), tmp_path / "llama"))
    with pytest.raises(ConfigError, match=r"5 heads do not divide the width of 36.*Possible: 0.3333 \(4 heads\), 0.5"):
        prune(llama, tmp_path / "pruned", Sparsity(heads=0.2))
    qwen = open_checkpoint(save(build(text="qwen2", text_args=heads), tmp_path / "qwen"))
    prune(qwen, tmp_path / "pruned", Sparsity(heads=0.2))
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "pruned")
    assert theirs.config.text_config.num_attention_heads == 5


def test_quantised_sources(tmp_path):
    source = save(build(), tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(ConfigError, match="quantization_config"):
        open_checkpoint(source)
    (source / "config.json").write_text(json.dumps(config))
    edit_tensors(source / "model.safetensors", lambda held: {k: (v * 9).to(torch.int8) for k, v in held.items()})
    with pytest.raises(CheckpointError, match=r"dtype I8.*have to be dequantized first"):
        prune(open_checkpoint(source), tmp_path / "pruned", Sparsity(ffn=0.5))


def test_places_that_are_taken(tmp_path):
    source = save(build(), tmp_path / "source")
    with pytest.raises(CheckpointError, match="cannot be written over what it is made from"):
        prune(open_checkpoint(source), source, Sparsity(ffn=0.5), overwrite=True)
    prune(open_checkpoint(source), tmp_path / "pruned", Sparsity(ffn=0.5))
    with pytest.raises(CheckpointError, match="a checkpoint already"):
        prune(open_checkpoint(source), tmp_path / "pruned", Sparsity(ffn=0.5))


def test_activations_of_another_model(tmp_path):
    checkpoint = open_checkpoint(save(build(), tmp_path / "source"))
    with pytest.raises(CheckpointError, match=r"decoder.layers.1/ffn: activations of 3 units.* has 44"):
        wrong = {"decoder.layers.1/ffn": np.ones(3)}
        prune(checkpoint, tmp_path / "pruned", Sparsity(ffn=0.5), activations=lambda: wrong)
