"""What every method has to hold, and every sensible combination: rows of a batch answer as alone, nothing compiles
again, keeping everything is no budget."""

import numpy as np
import pytest

import vila_jax
from tests.hf.test_add_scorer import scorer_for
from tests.infer.checkpoints import photo, write
from vila_jax.budgets import METHODS, Budget
from vila_jax.hf.add_scorer import add_scorer
from vila_jax.hf.checkpoint import open_checkpoint

OPTIONS = {"cdpruner": ",relevance=none", "fastv": ",layer=1", "hiprune": ",object_layer=1"}  # of a small model
SPECS = {name: f"{name}:0.4{OPTIONS.get(name, '')}" for name in METHODS}
COMBINED = [
    "hired:0.5+fastv:0.5,layer=1",
    "downsample:0.7+prumerge:0.5",
    "downsample:0.7+visionzip:0.6+fastv:0.5,layer=1",
    "tome:0.6+random:0.5",
    "tower_norm:0.6+divprune:0.5",
    "tower_norm:0.6+sparse:0.5",
    "divprune:0.5+pyramiddrop:0.5",
    "pool:0.5+fastv:0.5,layer=1",
]
PROMPTS = ["w5 <image> w6 <image> w7", "w20 w21 w22", "<image> w9 w10 w11"]
PICTURES = [[photo(60, 90), photo(28, 28, seed=1)], [], [photo(90, 40, seed=3)]]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> vila_jax.Model:
    """A LLaVA-NeXT with enough layers for every method, and a random scorer."""
    folder = tmp_path_factory.mktemp("every")
    pinpoints = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
    text = {"head_dim": 8, "max_position_embeddings": 200, "num_hidden_layers": 5}
    written = write(folder / "plain", next_=True, image_grid_pinpoints=pinpoints, text_args=text)
    checkpoint = open_checkpoint(written.folder)
    add_scorer(checkpoint, scorer_for(checkpoint), folder / "next")
    return vila_jax.from_pretrained(folder / "next", dtype="float32")


@pytest.mark.parametrize("spec", [*SPECS.values(), *COMBINED])
def test_rows_of_a_batch_answer_as_alone(model, spec):
    options = {"budget": spec, "max_new_tokens": 5, "ignore_eos": True}
    together = model.generate(PROMPTS, PICTURES, **options)
    for prompt, own, row in zip(PROMPTS, PICTURES, together, strict=True):
        alone = model.generate(prompt, own, **options)
        assert row.token_ids == alone.token_ids
        assert row.usage.visual_tokens_kept == alone.usage.visual_tokens_kept


@pytest.mark.parametrize("spec", [spec for name, spec in SPECS.items() if name != "downsample"] + COMBINED[:1])
def test_fifty_photos_compile_one_set_of_programs(model, count_compilations, spec):
    """`downsample` has programs for each size of what it shows, and a test of its own."""
    rng = np.random.default_rng(0)
    photos = [photo(*rng.integers(30, 120, 2), seed) for seed in range(50)]
    options = {"budget": spec, "max_new_tokens": 2, "ignore_eos": True}
    lengths = [model.generate("w5 <image> w6", [image], **options).usage.prompt_tokens for image in photos]
    assert len(set(lengths)) < len(photos)
    with count_compilations() as count:
        for image in photos:
            model.generate("w5 <image> w6", [image], **options)
    assert count() == 0


@pytest.mark.parametrize("name", METHODS)
def test_keeping_everything_is_no_budget_bit_for_bit(model, name):
    spec = f"{name}:1.0{OPTIONS.get(name, '')}"
    assert Budget.parse(spec).is_full
    plain, full = (model.logits(PROMPTS[0], PICTURES[0], budget=own) for own in (None, spec))
    np.testing.assert_array_equal(plain, full)
