"""What a scorer is to learn, against the attention that transformers returns for one question after another."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import vila_jax
from tests.nano import export_narrow
from train.teacher import ask, lesson
from vila_jax.scenes import draw_scene

QUESTIONS = ["What color is the ring?", "Is there a red circle?", "Read the plate."]
ANSWERS = ["red", "yes", "4 7 2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return export_narrow(tmp_path_factory.mktemp("teacher") / "narrow")


@pytest.fixture(scope="module")
def model(folder):
    return vila_jax.from_pretrained(str(folder))


def picture(size: tuple[int, int] | None) -> Image.Image:
    """A scene of 96 x 96 pixels, or noise of another (width, height)."""
    if size is None:
        return Image.fromarray(draw_scene(0, split="test").image)
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), np.uint8))


def their_attention(folder, shown: Image.Image, question: str, answer: list[int], layers) -> np.ndarray:
    """Attention of every query of one answer to the picture's tokens, newlines included, `[queries, tokens]`."""
    processor = transformers.AutoProcessor.from_pretrained(folder, backend="pil")
    theirs = transformers.LlavaNextForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    inputs = processor.apply_chat_template(
        ask(question, shown), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = torch.cat([inputs["input_ids"], torch.tensor([answer[:-1]], dtype=torch.long)], dim=1)
    rest = {name: inputs[name] for name in ("pixel_values", "image_sizes")}
    with torch.inference_mode():
        attentions = theirs(input_ids=ids, **rest, output_attentions=True).attentions
    mean = torch.stack([attentions[layer][0].mean(0) for layer in layers]).mean(0)
    return mean[-len(answer) :, ids[0] == theirs.config.image_token_id].numpy()


@pytest.mark.parametrize(("size", "layers"), [(None, (0, 1)), ((131, 57), (1,))])
def test_shares_are_the_mean_attention_of_all_answers(folder, model, size, layers):
    shown = picture(size)
    answers = [model.tokenizer.encode(answer, add_special_tokens=False) for answer in ANSWERS]
    asked = zip(QUESTIONS, answers, strict=True)
    received = np.concatenate([their_attention(folder, shown, *pair, layers) for pair in asked]).mean(0)
    geometry = model.preprocessor.geometry((shown.height, shown.width))
    cells = np.zeros(geometry.num_tiles * geometry.patches_per_tile + 1)
    cells[geometry.order_with_newlines(len(cells) - 1)] = received  # the last takes the newlines
    expected = cells[:-1][geometry.real().reshape(-1)]

    found = lesson(model, shown, QUESTIONS, answers, layers)

    np.testing.assert_allclose(found.shares, expected / expected.sum(), rtol=2e-4, atol=1e-7)
    features = model.features(model.preprocessor(shown)).reshape(len(cells) - 1, -1)[geometry.real().reshape(-1)]
    np.testing.assert_allclose(found.cells, features, rtol=1e-3, atol=1e-3)


def test_one_question_and_an_empty_answer(model):
    """The place after the prompt is a query even where nothing is said."""
    shown = picture(None)
    said = model.tokenizer.encode("red", add_special_tokens=False)
    empty, one = (lesson(model, shown, QUESTIONS[:1], [answer], (0, 1)) for answer in ([], said))
    np.testing.assert_array_equal(empty.shares, one.shares)
    assert empty.shares.sum() == pytest.approx(1)
