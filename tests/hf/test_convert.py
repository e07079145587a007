"""Conversion between layouts: the way there and back gives every tensor bit by bit, and transformers loads ours."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

from tests.hf.models import build, save
from tests.hf.vila import (
    CHECKPOINTS,
    NAMES,
    all_tensors,
    assert_equal_tensors,
    copy,
    edit_json,
    edit_tensors,
    small_files,
    with_llava_projector,
)
from vila_jax.errors import CheckpointError, ConfigError, VilaError
from vila_jax.hf.checkpoint import open_checkpoint
from vila_jax.hf.convert import convert
from vila_jax.hf.load import load_state
from vila_jax.model import from_pretrained

V1, V1ARCH, VILA15 = "v1_single_folder", "v1arch_llama_clip_pad", "vila15_llama_siglip"


def _convert(source, target, to, **options):
    convert(open_checkpoint(source), target, to=to, **options)
    return target


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shard_bytes", [50_000, 10**9])
def test_the_same_layout(name, shard_bytes, tmp_path):
    to = "llava" if name == V1 else "vila"
    ours = _convert(CHECKPOINTS / name, tmp_path / "ours", to, max_shard_bytes=shard_bytes)
    assert_equal_tensors(CHECKPOINTS / name, ours)
    assert small_files(ours) == small_files(CHECKPOINTS / name)
    assert open_checkpoint(ours).config == open_checkpoint(CHECKPOINTS / name).config
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]
    assert (len(list(ours.rglob("*.safetensors"))) > 4) == (shard_bytes == 50_000)


@pytest.mark.parametrize("next_", [False, True])
def test_llava_to_itself_keeps_every_name(next_, tmp_path):
    theirs = save(build(next_=next_), tmp_path / "theirs", max_shard_size="60KB")
    assert_equal_tensors(theirs, _convert(theirs, tmp_path / "ours", "hf"))
    type_ = transformers.LlavaNextForConditionalGeneration if next_ else transformers.LlavaForConditionalGeneration
    _, info = type_.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize(("name", "way"), [(V1, ("vila", "llava")), (V1, ("hf", "llava")), (V1ARCH, ("hf", "vila"))])
def test_there_and_back(name, way, tmp_path):
    """The tensors are those of the source, and the model and its pictures are the same at every stop."""
    source = CHECKPOINTS / name
    pictures = from_pretrained(source).preprocessor
    for to in way:
        source = _convert(source, tmp_path / to, to)
        photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 41, 3), np.uint8))
        pixels = from_pretrained(source).preprocessor(photo).pixels
        np.testing.assert_allclose(pixels, pictures(photo).pixels, atol=1e-6)
    assert_equal_tensors(CHECKPOINTS / name, source)
    first, last = (open_checkpoint(folder) for folder in (CHECKPOINTS / name, source))
    assert last.config.vlm == first.config.vlm
    assert last.config.pictures == first.config.pictures
    assert last.config.context_length == first.config.context_length
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert json.loads((last.tokenizer_folder / file).read_text()) == json.loads(
            (first.tokenizer_folder / file).read_text()
        )


NAMES_ELSEWHERE = {  # how each layout spells the prefixes of another, whatever our tables say
    (V1, "vila"): {
        "model.mm_projector.": "mm_projector/layers.",
        "model.vision_tower.vision_tower.": "vision_tower/",
        "": "llm/",
    },
    (V1ARCH, "hf"): {
        "mm_projector/layers.0.": "multi_modal_projector.linear_1.",
        "mm_projector/layers.2.": "multi_modal_projector.linear_2.",
        "vision_tower/": "vision_tower.",
        "llm/": "language_model.",
    },
}


@pytest.mark.parametrize(("name", "to"), NAMES_ELSEWHERE)
def test_names_are_those_of_published_checkpoints(name, to, tmp_path):
    theirs, prefixes = all_tensors(CHECKPOINTS / name), NAMES_ELSEWHERE[name, to]
    ours = all_tensors(_convert(CHECKPOINTS / name, tmp_path / "ours", to))
    assert len(ours) == len(theirs)
    for key, value in theirs.items():
        old = next(prefix for prefix in prefixes if key.startswith(prefix))
        assert torch.equal(ours[prefixes[old] + key.removeprefix(old)][: len(value)], value), key


@pytest.fixture(params=[V1ARCH, V1, "siglip"])
def exported(request, tmp_path):
    """A VILA that has just been exported to Hugging Face's LLaVA."""
    source = with_llava_projector(copy(VILA15, tmp_path)) if request.param == "siglip" else CHECKPOINTS / request.param
    return source, _convert(source, tmp_path / "hf", "hf")


def test_transformers_computes_the_same_logits(exported):
    source, folder = exported
    theirs, info = transformers.LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours = from_pretrained(source, dtype="float32")
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 255, (90, 60, 3), np.uint8))
    expected = ours.logits("USER: <image>\nWhat? ASSISTANT:", [photo])
    text = ours.token_ids("USER: <image>\nWhat? ASSISTANT:", [photo])
    token = theirs.config.image_token_id
    ids = [i for n in text for i in ([token] * 16 if n == ours.form.image_id else [n])]
    pixels = torch.tensor(ours.preprocessor(photo).pixels)
    with torch.no_grad():
        logits = theirs(input_ids=torch.tensor([ids]), pixel_values=pixels).logits[0].numpy()
    assert logits.shape == (len(expected), 401)
    np.testing.assert_allclose(logits[:, :400], expected, atol=1e-4)
    assert (logits[:, 400] < logits[:, :400].max(axis=1)).all()  # the image token is never answered
    again = from_pretrained(folder, dtype="float32")
    assert again.tokenizer.image_token_id == token == 400


def test_the_processor_of_transformers_makes_the_same_pixels(exported):
    source, folder = exported
    processor = transformers.AutoProcessor.from_pretrained(folder, backend="pil", use_fast=False)
    ours = from_pretrained(source).preprocessor
    for shape in ((56, 56, 3), (70, 41, 3), (33, 80, 3)):
        photo = Image.fromarray(np.random.default_rng(2).integers(0, 255, shape, np.uint8))
        theirs = processor(images=photo, text="<image>\nhello", return_tensors="np")
        np.testing.assert_allclose(theirs["pixel_values"], ours(photo).pixels, atol=2e-6)
        assert (theirs["input_ids"] == 400).sum() == 16


def test_a_row_to_spare_is_used(tmp_path):
    """Tables longer than the tokenizer stay as they are."""
    source = copy(V1ARCH, tmp_path)
    edit_json(source / "llm" / "config.json", vocab_size=448)
    tables = ("model.embed_tokens.weight", "lm_head.weight")
    longer = {name: torch.ones(448, 64, dtype=torch.bfloat16) for name in tables}
    edit_tensors(source / "llm" / "model.safetensors", lambda tensors: tensors | longer)
    folder = _convert(source, tmp_path / "hf", "hf")
    assert json.loads((folder / "config.json").read_text())["image_token_index"] == 400
    assert from_pretrained(folder).tokenizer.image_token_id == 400
    assert_equal_tensors(source, _convert(folder, tmp_path / "vila", "vila"))


@pytest.mark.parametrize("legacy", [False, True, None])
def test_a_sentencepiece_tokenizer(legacy, tmp_path):
    """`hf` gets a `tokenizer.json` with the same ids, as transformers reads it too; the way back takes it away."""
    source = copy(V1, tmp_path)
    reference = transformers.PreTrainedTokenizerFast(tokenizer_file=str(source / "tokenizer.json"))
    (source / "tokenizer.json").unlink()
    [data] = np.load(source / "tokenizer_model_bytes.npz").values()
    (source / "tokenizer.model").write_bytes(data.tobytes())
    edit_json(source / "tokenizer_config.json", legacy=... if legacy is None else legacy)
    folder = _convert(source, tmp_path / "hf", "hf")
    ours, theirs = from_pretrained(folder).tokenizer, transformers.AutoTokenizer.from_pretrained(folder)
    assert ours.image_token_id == theirs.convert_tokens_to_ids("<image>") == 400
    text = "USER: a small  tractor \u4f60\nASSISTANT: two</s>USER: three"
    assert ours.encode(text) == theirs(text)["input_ids"] == reference(text)["input_ids"]
    back = small_files(_convert(folder, tmp_path / "llava", "llava"))
    assert "tokenizer.json" not in back
    assert back["tokenizer.model"] == data.tobytes()
    if not legacy:
        assert json.loads(back["tokenizer_config.json"]) == json.loads((source / "tokenizer_config.json").read_text())


def test_a_tied_model_and_a_siglip_tower(tmp_path):
    """SigLIP with its head, tied embeddings, float32: from transformers' own files and back."""
    theirs = save(build(vision="siglip", text="qwen2", tie_word_embeddings=True), tmp_path / "theirs")
    (theirs / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "SiglipImageProcessor", "size": {"height": 28, "width": 28}})
    )
    vila = _convert(theirs, tmp_path / "vila", "vila")
    checkpoint = open_checkpoint(vila)
    load_state(checkpoint, dtype=np.float32)
    assert checkpoint.config.vlm.decoder.tie_embeddings
    assert checkpoint.config.pictures.mode == "default"
    originals, ours = all_tensors(theirs), all_tensors(vila)
    assert any("head" in name for name in originals)
    assert len(ours) == len(originals)
    assert len(ours["llm/model.embed_tokens.weight"]) == 96  # the row of the image token was the last of 97


@pytest.mark.parametrize(
    ("name", "to", "found"),
    [
        (VILA15, "hf", "merges windows of 2 x 2"),
        (VILA15, "llava", "SigLIP tower"),
        ("nvila_lite_qwen2_dynamic", "hf", "'dynamic'"),
        ("nvila_qwen2_dynamic_s2", "llava", "'dynamic_s2'"),
        (V1ARCH, "llava", "vision.num_heads is 4, and would become 1"),
    ],
)
def test_what_has_no_place_is_named(name, to, found, tmp_path):
    with pytest.raises(ConfigError, match=found):
        _convert(CHECKPOINTS / name, tmp_path / "ours", to)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["vila", "llava"])
def test_llava_next_has_no_place_in_vila(to, tmp_path):
    with pytest.raises(ConfigError, match="newlines of LLaVA-NeXT"):
        _convert(save(build(next_=True), tmp_path / "theirs"), tmp_path / "ours", to)


def test_a_tensor_of_no_model_is_refused(tmp_path):
    folder = copy(VILA15, tmp_path)
    edit_tensors(folder / "mm_projector" / "model.safetensors", lambda t: t | {"extra": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="unexpected: mm_projector/extra"):
        _convert(folder, tmp_path / "ours", "vila")


def test_dtype(tmp_path):
    ours = _convert(CHECKPOINTS / VILA15, tmp_path / "ours", "vila", dtype="float16")
    for name, tensor in all_tensors(CHECKPOINTS / VILA15).items():
        assert torch.equal(all_tensors(ours)[name], tensor.half())
    config = json.loads((ours / "llm" / "config.json").read_text())
    assert config["torch_dtype"] == "float16"
    edit_tensors(ours / "mm_projector" / "model.safetensors", lambda t: {k: v.float() * 1e9 for k, v in t.items()})
    with pytest.raises(CheckpointError, match="numbers that float16 cannot"):
        _convert(ours, tmp_path / "again", "vila", dtype="float16")
    assert not (tmp_path / "again").exists()


def test_a_stretched_context_reaches_transformers(tmp_path):
    folder = copy(V1ARCH, tmp_path)
    edit_json(folder / "llm" / "config.json", max_position_embeddings=1024)
    theirs = transformers.LlavaConfig.from_pretrained(_convert(folder, tmp_path / "hf", "hf"))
    assert theirs.text_config.rope_parameters["factor"] == 4.0
    source, ours = (open_checkpoint(path).config for path in (folder, tmp_path / "hf"))
    assert dataclasses.replace(ours.vlm.decoder, vocab_size=400) == source.vlm.decoder
    assert ours.context_length == source.context_length == 4096


def test_wrong_arguments():
    checkpoint = open_checkpoint(CHECKPOINTS / V1)
    with pytest.raises(VilaError, match="unknown layout 'onnx'"):
        convert(checkpoint, "nowhere", to="onnx")
    with pytest.raises(VilaError, match="unknown dtype 'int8'"):
        convert(checkpoint, "nowhere", to="hf", dtype="int8")


def test_shards_hold_what_the_index_says(tmp_path):
    ours = _convert(CHECKPOINTS / V1, tmp_path / "ours", "llava", max_shard_bytes=40_000)
    weight_map = json.loads((ours / "model.safetensors.index.json").read_text())["weight_map"]
    held = {name: path.name for path in ours.glob("*.safetensors") for name in load_file(path)}
    assert weight_map == held
