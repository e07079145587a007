"""Methods that keep patches, from a picture to the kept tokens of whole models.

The oracle of what the methods read is transformers: its towers with the same weights and eager attention.
"""

import pathlib

import numpy as np
import pytest
import torch
from PIL import Image

import vila_jax
from tests.budgets.selecting import farthest_first
from tests.infer.checkpoints import photo
from vila_jax.budgets import METHODS, TokenMethod
from vila_jax.errors import BudgetError

SIGLIP = pathlib.Path(__file__).parents[1] / "golden" / "vila" / "checkpoints" / "nvila_lite_qwen2_dynamic"
WIDE, TALL, SQUARE = photo(33, 71), photo(90, 41), photo(60, 60)
FAMILIES = [
    "fastervlm:0.3",
    "vispruner:0.3",
    "hiprune:0.3,object_layer=0,alpha=0.5",
    "divprune:0.3",
    "cdpruner:0.3,relevance=none",
    "norm:0.3",
    "uniform:0.3",
]
TOKEN_METHODS = [name for name, method in METHODS.items() if issubclass(method, TokenMethod)]


@pytest.fixture(scope="module")
def siglip() -> vila_jax.Model:
    return vila_jax.from_pretrained(SIGLIP, dtype="float32")


def kept_by_tile(model, image, budget, patches):
    """Kept patches of every tile."""
    kept = model.engine.selection(image, budget=model._budget(budget)).tolist()
    return [{i % patches for i in kept if i // patches == tile} for tile in range(image.geometry.num_tiles)]


def attention_of_transformers(written, image, block):
    """Eager attention of the CLIP tower, `[P, heads, N + 1, N + 1]`."""
    tower = written.model.model.vision_tower
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        return tower(torch.from_numpy(image.pixels), output_attentions=True).attentions[block].numpy()


def best(scores, real, count):
    ranked = sorted(np.flatnonzero(real), key=lambda i: -scores[i])
    return {int(i) for i in ranked[:count]}


@pytest.mark.parametrize("picture", [TALL, SQUARE], ids=["tall", "square"])
def test_fastervlm_keeps_what_the_class_token_attends_to(model, written, picture):
    [image] = model.preprocessor.pictures([picture])
    scores = attention_of_transformers(written, image, block=1)[:, :, 0, 1:].sum(1)
    for kept, own, real in zip(kept_by_tile(model, image, "cls:0.4", 16), scores, image.geometry.real(), strict=True):
        assert 0 < len(kept) < real.sum() and kept == best(own, real, len(kept))


def test_hiprune_reads_what_patches_receive(model, written):
    """Without anchors it keeps the most attended of the last block used, the class token's own attention included."""
    [image] = model.preprocessor.pictures([TALL])
    scores = attention_of_transformers(written, image, block=1)[:, :, :, 1:].mean(2).sum(1)
    by_tile = kept_by_tile(model, image, "hiprune:0.4,alpha=0,object_layer=0", 16)
    for kept, own, real in zip(by_tile, scores, image.geometry.real(), strict=True):
        assert 0 < len(kept) < real.sum() and kept == best(own, real, len(kept))


def test_norm_reads_the_features_of_the_projector(model):
    [image] = model.preprocessor.pictures([SQUARE])
    norms = np.linalg.norm(model.features(image), axis=-1)
    by_tile = kept_by_tile(model, image, "norm:0.4", 16)
    for kept, own, real in zip(by_tile, norms, image.geometry.real(), strict=True):
        assert 0 < len(kept) < real.sum() and kept == best(own, real, len(kept))


def test_divprune_compares_what_the_decoder_reads(model):
    [image] = model.preprocessor.pictures([TALL])
    order = image.geometry.order_with_newlines(-1)
    tokens = model.embeddings("<image>", [TALL])[1:][order >= 0]  # behind `<s>`
    chosen = farthest_first(tokens, range(len(tokens)), 9)
    kept = model.engine.selection(image, budget=model._budget("divprune:9"))
    assert kept.tolist() == image.geometry.order()[chosen].tolist()


@pytest.mark.parametrize("budget", FAMILIES)
def test_pictures_of_a_batch_are_pruned_as_alone(model, budget):
    """Two pictures of different grids in a row, and a row of its own: any-res, on CLIP."""
    rows = {"w10 <image> w11 <image> w12": [WIDE, SQUARE], "<image> w30": [TALL]}
    options = {"budget": budget, "max_new_tokens": 5, "ignore_eos": True}
    together = model.generate(list(rows), list(rows.values()), **options)
    for answer, (prompt, pictures) in zip(together, rows.items(), strict=True):
        patches = [16 * model.preprocessor.geometry(picture.size[::-1]).num_tiles for picture in pictures]
        assert answer.usage.visual_tokens_kept == sum(int(0.3 * n) for n in patches)
        assert answer.token_ids == model.generate(prompt, pictures, **options).token_ids


@pytest.mark.parametrize("budget", FAMILIES)
def test_cells_of_a_projector_that_merges(siglip, budget):
    """A tower without class token, windows of patches merged: what is kept are tokens of the full prompt, unchanged."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 150, 3), dtype=np.uint8))
    ask = {"messages": [{"role": "user", "content": [{"type": "image", "image": picture}]}]}
    [image] = siglip.preprocessor.pictures([picture])
    cells = image.geometry.real().sum()
    budget = budget.replace("0.3", "0.5")
    kept = siglip.engine.selection(image, budget=siglip._budget(budget)).tolist()
    assert len(kept) == len(set(kept)) == cells // 2
    full, some = siglip.embeddings(**ask), siglip.embeddings(**ask, budget=budget)
    assert max(np.abs(full - row).max(axis=1).min() for row in some) < 1e-6


@pytest.mark.parametrize("name", TOKEN_METHODS)
def test_keeping_everything_is_no_budget_bit_for_bit(model, name):
    ask = ("w5 <image> w6 w7", [TALL])
    np.testing.assert_array_equal(model.logits(*ask, budget=f"{name}:1"), model.logits(*ask))
    options = {"max_new_tokens": 4, "ignore_eos": True}
    assert model.generate(*ask, budget=f"{name}:100%", **options).token_ids == model.generate(*ask, **options).token_ids


@pytest.mark.parametrize("budget", FAMILIES)
def test_one_compilation_for_all_pictures(model, count_compilations, budget):
    sizes = [(60, 60), (23, 150), (150, 23), (33, 71), (90, 41), (28, 56), (70, 20), (56, 28)]
    options = {"budget": budget, "max_new_tokens": 2, "ignore_eos": True}
    grids = {model.preprocessor.geometry(size).grid for size in sizes}
    model.generate("w5 <image>", [photo(*sizes[0])], **options)
    with count_compilations() as count:
        for size in sizes[1:]:
            model.generate("w5 <image>", [photo(*size)], **options)
    assert count() == 0 and len(grids) == 5


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("cdpruner:0.3", r"text tower.*relevance=none.*divprune"),
        ("cls:0.3,layer=2", r"option layer.*2 blocks.*0 to 1"),
        ("hiprune:0.3", r"option object_layer.*block 8.*0 to 1"),
        ("vispruner:4", r"4 token.*5 tiles"),
        ("divprune:999", "999 visual tokens"),
    ],
)
def test_budgets_that_cannot_be_met(model, budget, message):
    with pytest.raises(BudgetError, match=message):
        model.generate("<image>", [photo(60, 60)], budget=budget)
