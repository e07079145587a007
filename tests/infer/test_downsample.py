"""Smaller pictures: which form the tokens pay for, and that it is what Hugging Face's tower makes of such a picture."""

import pathlib

import numpy as np
import pytest
import torch
from PIL import Image

import vila_jax
from tests.infer.checkpoints import photo
from vila_jax.errors import BudgetError

WIDE, SQUARE, TALL = photo(30, 75), photo(64, 60), photo(90, 41)
VILA = pathlib.Path(__file__).parents[1] / "golden" / "vila" / "checkpoints"


def shown(model, picture, budget):
    """The picture as the budget shows it."""
    return model.request("<image>", [picture], budget=budget).media[0]


def expected(written, image, pixels):
    """Projected tokens of these pixels in token order, by transformers."""
    parts = written.model.model
    with torch.no_grad():
        states = parts.vision_tower(
            torch.from_numpy(pixels), output_hidden_states=True, interpolate_pos_encoding=True
        ).hidden_states[-2]
        return parts.multi_modal_projector(states[:, 1:]).numpy()


def test_the_most_that_the_tokens_pay_for(model):
    """More tokens never show less; a picture never has more than it may, and all that it has if it may."""
    for picture in (WIDE, SQUARE, TALL):
        size = picture.height, picture.width
        full = len(model.preprocessor.geometry(size).order())
        counts = [len(model.preprocessor.within(size, n).geometry(size).order()) for n in range(1, full + 1)]
        assert all(count <= n for n, count in enumerate(counts, 1))
        assert counts == sorted(counts) and counts[-1] == full
        assert counts[:16] == [int(n**0.5) ** 2 for n in range(1, 17)]


def test_fewer_tiles(written, model):
    """A canvas of 2 x 2 tiles is 80 tokens; half of them pay for overview and one of two tiles, half of it padding."""
    image = shown(model, SQUARE, "downsample:0.5")
    assert image.geometry.grid in ((1, 2), (2, 1)) and image.unlimited.grid == (2, 2)
    tokens = expected(written, image, image.pixels).reshape(-1, 36)[image.geometry.order()]
    embedded = model.embeddings("<image> w5", [SQUARE], budget="downsample:0.5")
    np.testing.assert_allclose(embedded[1:-1], tokens, atol=1e-4)  # no newline between the rows


@pytest.mark.parametrize(("keep", "edge"), [("0.2", 28), ("0.19", 21), ("4", 14)])
def test_one_tile(written, model, keep, edge):
    image = shown(model, SQUARE, f"downsample:{keep}")
    small = SQUARE.resize((28, 28), Image.Resampling.BICUBIC)
    small = small if edge == 28 else small.resize((edge, edge), Image.Resampling.BICUBIC)
    pixels = model.preprocessor.values(np.asarray(small)[None])
    np.testing.assert_array_equal(image.pixels, pixels)
    embedded = model.embeddings("<image> w5", [SQUARE], budget=f"downsample:{keep}")
    np.testing.assert_allclose(embedded[1:-1], expected(written, image, pixels)[0], atol=1e-4)


@pytest.mark.parametrize("budget", ["downsample:0.2", "downsample:0.2+random:0.5", "downsample:0.5+hired:0.5"])
def test_pictures_of_several_sizes(model, budget):
    """One tile, a smaller one, and several, in one batch: each as alone."""
    prompts, images = ["<image> w5 <image> w6", "w7 <image>"], [[WIDE, TALL], [SQUARE]]
    ask = {"max_new_tokens": 4, "budget": budget, "ignore_eos": True}
    together = model.generate(prompts, images, **ask)
    alone = [model.generate(prompt, own, **ask) for prompt, own in zip(prompts, images, strict=True)]
    assert [row.token_ids for row in together] == [row.token_ids for row in alone]
    edges = {shown(model, picture, "downsample:0.2").pixels.shape[-1] for picture in (WIDE, SQUARE)}
    assert len(edges) == 2
    sizes = [[(picture.height, picture.width) for picture in own] for own in images]
    counts = [sum(model.count_tokens(size, budget) for size in own) for own in sizes]
    assert [row.usage.visual_tokens_kept for row in together] == counts
    full = [sum(model.count_tokens(size, None) for size in own) for own in sizes]
    assert [row.usage.visual_tokens_full for row in together] == full


def test_one_compilation_for_each_size(model, count_compilations):
    def ask(height, width):
        model.generate("<image>", [photo(height, width)], max_new_tokens=2, budget="downsample:9", ignore_eos=True)

    ask(64, 60)
    with count_compilations() as count:
        for size in ((30, 75), (90, 41), (20, 20), (7, 99)):
            ask(*size)
    assert count() == 0


@pytest.mark.parametrize(
    ("name", "keep", "tokens"),
    [
        ("nvila_lite_qwen2_dynamic", "0.8", 12),  # of 4 tiles of 4 cells: 1 x 2 of them, and an overview
        ("nvila_lite_qwen2_dynamic", "4", 4),
        ("nvila_lite_qwen2_dynamic", "3", 1),
        ("vila15_llama_siglip", "0.5", 1),  # one of 2 x 2 cells
    ],
)
def test_vila(name, keep, tokens):
    model = vila_jax.from_pretrained(VILA / name)
    messages = [{"role": "user", "content": [{"type": "image", "image": photo(60, 150)}]}]
    ask = {"messages": messages, "max_new_tokens": 2, "ignore_eos": True}
    assert model.generate(**ask, budget=f"downsample:{keep}").usage.visual_tokens_kept == tokens


def test_several_scales():
    model = vila_jax.from_pretrained(VILA / "nvila_qwen2_dynamic_s2")
    messages = [{"role": "user", "content": [{"type": "image", "image": photo(60, 150)}]}]
    with pytest.raises(BudgetError, match="several scales"):
        model.generate(messages=messages, max_new_tokens=2, budget="downsample:2")


def test_more_than_there_is(model):
    with pytest.raises(BudgetError, match="asks for 500 visual tokens"):
        model.count_tokens((64, 60), "downsample:500")
