"""`learned` from picture to answer: any-res pictures in a batch, VILA's layouts, one compilation for all pictures.

The oracle of the scores is the scorer's formula in PyTorch on the features that the tower gives without a budget.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import vila_jax
from tests.hf.test_add_scorer import scorer_for
from tests.hf.vila import CHECKPOINTS
from tests.infer.checkpoints import photo
from vila_jax.hf.add_scorer import add_scorer
from vila_jax.hf.checkpoint import open_checkpoint

VILA15 = "vila15_llama_siglip"


@pytest.fixture(scope="module")
def weights(written):
    return scorer_for(open_checkpoint(written.folder))


@pytest.fixture(scope="module")
def scored(written, weights, tmp_path_factory) -> vila_jax.Model:
    """The room's LLaVA-NeXT with a random scorer."""
    folder = tmp_path_factory.mktemp("learned") / "next"
    add_scorer(open_checkpoint(written.folder), weights, folder)
    return vila_jax.from_pretrained(folder, dtype="float32")


def their_scores(features: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    w = {name: torch.from_numpy(value) for name, value in weights.items()}
    x = F.layer_norm(torch.from_numpy(features), features.shape[-1:], w["norm.weight"], w["norm.bias"])
    x = F.gelu(F.linear(x, w["fc1.weight"], w["fc1.bias"]))
    return F.linear(x, w["fc2.weight"], w["fc2.bias"])[..., 0].numpy()


@pytest.mark.parametrize("size", [(60, 90), (28, 28), (33, 100)])
def test_the_best_scores_are_kept(scored, weights, size):
    [image] = scored.preprocessor.pictures([photo(*size)])
    features = np.array(scored.features(image))
    real = image.geometry.real()
    scores = np.where(real, their_scores(features, weights), -np.inf).reshape(-1)
    kept = scored.engine.selection(image, budget=scored._budget("learned:9"))
    assert set(kept.tolist()) == set(np.argsort(-scores, kind="stable")[:9].tolist())
    order = image.geometry.order().tolist()
    assert [order.index(i) for i in kept] == sorted(order.index(i) for i in kept)


def test_a_batch_of_rows_with_two_pictures(scored):
    """Every row answers as it does alone, and counts its tokens exactly."""
    pictures = [[photo(60, 90), photo(28, 28, seed=1)], [photo(33, 100, seed=2), photo(90, 40, seed=3)]]
    prompts = ["w5 <image> w6 <image> w7", "<image> <image> w9 w10 w11"]
    options = {"budget": "learned:0.3", "max_new_tokens": 4, "ignore_eos": True}
    together = scored.generate(prompts, pictures, **options)
    for prompt, own, row in zip(prompts, pictures, together, strict=True):
        alone = scored.generate(prompt, own, **options)
        assert row.token_ids == alone.token_ids
        counts = [scored.count_tokens((p.height, p.width), "learned:0.3") for p in own]
        assert row.usage.visual_tokens_kept == alone.usage.visual_tokens_kept == sum(counts)


def test_everything_is_no_budget(scored):
    prompt, shown = "w5 <image> w6", [photo(60, 90)]
    np.testing.assert_array_equal(scored.logits(prompt, shown, budget="learned:1.0"), scored.logits(prompt, shown))


def test_one_compilation_for_all_pictures(scored, count_compilations):
    options = {"budget": "learned:0.3", "max_new_tokens": 2, "ignore_eos": True}
    scored.generate("w5 <image> w6", [photo(60, 90)], **options)
    with count_compilations() as count:
        for number in range(6):
            scored.generate("w5 <image> w6", [photo(40 + 9 * number, 120 - 13 * number, seed=number)], **options)
    assert count() == 0


def test_siglip_behind_a_projector_that_merges(tmp_path):
    """The scorer reads what the projector takes: windows of patches, one vector each."""
    checkpoint = open_checkpoint(CHECKPOINTS / VILA15)
    add_scorer(checkpoint, scorer_for(checkpoint), tmp_path / "vila")
    model = vila_jax.from_pretrained(tmp_path / "vila")
    shown = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 150, 3), dtype=np.uint8))
    [image] = model.preprocessor.pictures([shown])
    kept = model.engine.selection(image, budget=model._budget("learned:2"))
    ask = {"messages": [{"role": "user", "content": [{"type": "image", "image": shown}]}]}
    full, some = model.embeddings(**ask), model.embeddings(**ask, budget="learned:2")
    assert len(kept) == 2 and len(full) - len(some) == image.geometry.real().sum() - 2
    assert max(np.abs(full - row).max(axis=1).min() for row in some) < 1e-6
