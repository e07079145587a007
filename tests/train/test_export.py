"""nano as its page says, as transformers' own classes read it: the same pictures, the same ids, the same answers."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import vila_jax
from configs.nano.model import PREPROCESSOR, new
from tests.nano import export_random
from vila_jax.scenes import draw_scene

SIZES = {"square": (96, 96), "wide": (96, 48), "tall": (48, 96), "odd": (131, 57), "tiny": (7, 5)}
QUESTION = "What color is the ring?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return export_random(new(), tmp_path_factory.mktemp("nano") / "export")


@pytest.fixture(scope="module")
def theirs(folder):
    processor = transformers.AutoProcessor.from_pretrained(folder, backend="pil")
    model, info = transformers.LlavaNextForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    return processor, model.eval()


@pytest.fixture(scope="module")
def ours(folder):
    return vila_jax.from_pretrained(str(folder))


def _picture(name: str) -> Image.Image:
    if name == "square":
        return Image.fromarray(draw_scene(0, split="test").image)
    width, height = SIZES[name]
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("name", SIZES)
def test_transformers_gives_the_same_tokens(name, theirs, ours):
    processor, model = theirs
    picture = _picture(name)
    messages = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]}]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    prompt = inputs["input_ids"][0].tolist()
    np.testing.assert_array_equal(inputs["pixel_values"][0].numpy(), ours.preprocessor(picture).pixels)
    with torch.inference_mode():
        expected = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, len(prompt) :].tolist()
    answer = ours.generate(messages=messages, max_new_tokens=8)
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.visual_tokens_kept == prompt.count(model.config.image_token_id)
    assert list(answer.token_ids) == expected
    assert answer.text == processor.decode(expected, skip_special_tokens=True)


def test_the_answers_depend_on_the_picture(ours):
    prompt = f"USER: <image>\n{QUESTION} ASSISTANT:"
    assert len({ours.generate(prompt, [_picture(name)], max_new_tokens=8).text for name in SIZES}) > 1


def test_a_prompt_begins_once(theirs, ours):
    """Neither the template and the tokenizer of transformers nor ours put `<s>` in front twice."""
    processor, _ = theirs
    messages = [{"role": "user", "content": [{"type": "text", "text": "Read the sign."}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    ids = processor.tokenizer(text)["input_ids"]
    assert ids == ours.tokenizer.encode_prompt(text)
    assert ids[0] == processor.tokenizer.bos_token_id and ids.count(ids[0]) == 1
    assert processor.tokenizer.unk_token_id not in ids


def test_the_folder_is_small(folder):
    assert sum(path.stat().st_size for path in folder.iterdir()) < 12e6


def test_older_releases_find_the_picture_settings(folder):
    """Before version 5 they were read from a file of their own."""
    processor = json.loads((folder / "processor_config.json").read_text())
    alone = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["image_processor"] == alone == PREPROCESSOR
