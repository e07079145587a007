"""Budgets inside the vision tower, from pictures to answers: batches, any-res pictures, what is counted and refused."""

import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

import vila_jax
from tests.infer.checkpoints import photo, write
from vila_jax.budgets import Budget
from vila_jax.errors import BudgetError, VilaError
from vila_jax.model import from_pretrained

CHECKPOINTS = pathlib.Path(__file__).parents[1] / "golden" / "vila" / "checkpoints"
WIDE, TALL, SQUARE = photo(33, 71), photo(90, 41), photo(60, 60)
ROWS = {"w10 <image> w11 <image> w12": [WIDE, SQUARE], "w20 w21": [], "<image> w30 w31": [TALL]}
BATCH = {"prompt": list(ROWS), "images": list(ROWS.values())}
SPECS = ["tome:0.5", "tower_norm:0.5", "tower_norm:0.6,form=threshold,threshold=0.95", "tome:0.5+random:0.5"]


@pytest.fixture(scope="module")
def siglip(tmp_path_factory) -> vila_jax.Model:
    return from_pretrained(write(tmp_path_factory.mktemp("siglip"), "siglip", "qwen2").folder, dtype="float32")


@pytest.mark.parametrize("spec", SPECS)
def test_rows_of_a_batch_answer_as_alone(model, spec):
    options = {"budget": spec, "max_new_tokens": 5, "ignore_eos": True}
    together = model.generate(**BATCH, **options)
    alone = [model.generate(*row, **options) for row in ROWS.items()]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert [answer.usage for answer in together] == [answer.usage for answer in alone]
    assert together[0].usage.visual_tokens_kept > 0


def chosen_of(model, picture, spec):
    image = model.preprocessor(picture)
    tiles = model.engine.planner.tiles([image], Budget.parse(spec))
    return image, tiles, jax.device_get(model.engine.phases.selection(tiles))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("picture", [WIDE, SQUARE], ids=["padded", "square"])
def test_survivors_are_distinct_and_show_the_picture(model, spec, picture):
    image, _, chosen = chosen_of(model, picture, spec)
    kept = chosen.indices[0][chosen.valid[0]].tolist()
    order = image.geometry.order().tolist()
    places = [order.index(i) for i in kept]
    assert places == sorted(set(places))
    promised = model.count_tokens((picture.height, picture.width), spec)
    used = model.generate("w5 <image>", [picture], budget=spec, max_new_tokens=1).usage.visual_tokens_kept
    assert used == len(kept) <= promised
    assert kept and (used == promised or spec != "tower_norm:0.5")


def test_counts_of_a_tile(model):
    """Of 16 patches a tile; the square has 5 tiles and no padding."""
    assert model.count_tokens((60, 60), "tome:0.5") == 5 * 8
    assert model.count_tokens((60, 60), "tome:7") == 5 * 7
    assert model.count_tokens((60, 60), "tome:0.5+random:0.5") == 5 * 8 // 2
    assert model.count_tokens((60, 60), "tower_norm:0.5+random:9") == 9


def features(model, tiles) -> np.ndarray:
    """What the tower says of the patches of all tiles."""
    return np.asarray(model.engine.phases.features(tiles))


@pytest.mark.parametrize("spec", ["tome:0.5", "tower_norm:0.5"])
def test_weights_are_the_clusters(model, spec):
    """A token is the mean of the patches merged in it, all of which show its features."""
    _, tiles, chosen = chosen_of(model, SQUARE, spec)
    own = features(model, tiles)[:5].reshape(80, -1)
    weights = chosen.weights[0][chosen.valid[0]]
    np.testing.assert_allclose(weights @ own, own[chosen.indices[0][chosen.valid[0]]], atol=1e-4)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    members = (weights > 0).sum(axis=0)
    assert (members == 1).all() if spec.startswith("tome") else set(members.tolist()) == {0, 1}


@pytest.mark.parametrize("spec", ["tome:0.5", "tower_norm:0.5"])
def test_what_the_decoder_reads(model, spec):
    """The survivors' features through the projector, in token order, between the words."""
    _, tiles, chosen = chosen_of(model, SQUARE, spec)
    kept = chosen.indices[0][chosen.valid[0]]
    embedded = model.embeddings("w5 <image> w6", [SQUARE], budget=spec)
    assert len(embedded) == 3 + len(kept)
    table = np.asarray(model.engine.phases.visual_tokens(tiles).table)
    np.testing.assert_allclose(embedded[2:-1], table[: len(kept)], atol=1e-5)
    full = model.embeddings("w5 <image> w6", [SQUARE], budget=None)
    np.testing.assert_allclose(embedded[[0, 1, -1]], full[[0, 1, -1]], atol=1e-6)


@pytest.mark.parametrize("spec", ["tome:1", "tower_norm:100%", "tower_norm:1,form=threshold,adaptive=true"])
def test_keeping_everything_is_no_budget_bit_for_bit(model, spec):
    np.testing.assert_array_equal(
        model.logits("w5 <image>", [TALL], budget=spec), model.logits("w5 <image>", [TALL], budget=None)
    )


@pytest.mark.parametrize("spec", ["tome:0.5", "tower_norm:0.5,first_layer=1"])
def test_towers_without_class_token(siglip, spec):
    options = {"budget": spec, "max_new_tokens": 4, "ignore_eos": True}
    pictures = [photo(40, 40, seed=1), photo(31, 50, seed=2)]
    prompts = ["w5 <image> w6", "<image> w7 w8 w9"]
    together = siglip.generate(prompts, [[p] for p in pictures], **options)
    for answer, prompt, picture in zip(together, prompts, pictures, strict=True):
        alone = siglip.generate(prompt, [picture], **options)
        assert alone.token_ids == answer.token_ids
        assert alone.usage.visual_tokens_kept == 8


@pytest.mark.parametrize("spec", SPECS)
def test_one_compilation_for_all_pictures(model, spec, count_compilations):
    def run(height: int, width: int) -> None:
        model.generate("w5 <image>", [photo(height, width)], budget=spec, max_new_tokens=2, ignore_eos=True)

    run(60, 60)
    with count_compilations() as count:
        for height, width in [(56, 57), (58, 61), (71, 72), (100, 110)]:
            run(height, width)
    assert count() == 0


def test_the_vila_of_a_plain_projector():
    """A checkpoint of VILA's own layout whose projector merges nothing."""
    model = from_pretrained(CHECKPOINTS / "v1arch_llama_clip_pad")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 150, 3), dtype=np.uint8))
    ask = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}]}]
    for spec in ("tome:0.5", "tower_norm:0.5"):
        usage = model.generate(messages=ask, max_new_tokens=2, budget=spec).usage
        assert usage.visual_tokens_kept == model.count_tokens((60, 150), None) // 2


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vila15_llama_siglip", "projector merges windows of 2 x 2 patches"),
        ("nvila_qwen2_dynamic_s2", "projector merges windows of"),
    ],
)
def test_projectors_that_merge_are_refused(name, reason):
    with pytest.raises(BudgetError, match=reason):
        from_pretrained(CHECKPOINTS / name, budget="tome:0.5")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tome:0.5+hired:0.5", "hired scores or counts patches of which tome leaves only some.*random"),
        ("random:0.5+tome:0.5", r"random works between .* after tome.*Write tome:0.5\+random:0.5"),
        ("tome:0.5+tower_norm:0.5", "both work inside the vision tower"),
        ("downsample:0.5+tome:0.5", "tome counts the tokens of whole tiles"),
        ("tome:17", "asks for 17 visual tokens, but a tile has only 16"),
        ("tower_norm:0.5,first_layer=7", "block 7 does not exist"),
        ("tome:2,r=1", "1 fewer in each of 2 blocks leave 14 of 16"),
        ("tower_norm:0.5+random:200", "asks for 200 visual tokens"),
    ],
)
def test_what_is_refused(model, spec, message):
    with pytest.raises(VilaError, match=message):
        model.generate("w5 <image>", [SQUARE], budget=spec, max_new_tokens=1)
