"""Original positions, from prompt to answer.

The oracle is transformers' Llama, given the embeddings of the tokens that are left and explicit position ids: for each
token the place at which it stands in the prompt that transformers itself splices, all visual tokens and newlines in it.
Generated tokens have explicit ids, too.
"""

import pathlib

import numpy as np
import pytest
import torch
from PIL import Image

import vila_jax
from tests.hf.test_add_scorer import scorer_for
from tests.infer.checkpoints import Written, photo, write
from tests.infer.places import places_left
from vila_jax.budgets import METHODS, Budget, TokenMethod, TowerMethod
from vila_jax.errors import ContextLengthError
from vila_jax.hf.add_scorer import add_scorer
from vila_jax.hf.checkpoint import open_checkpoint
from vila_jax.infer.positions import base_positions, places_in_picture
from vila_jax.infer.prefill import close_gaps, rotary_positions

VILA = pathlib.Path(__file__).parents[1] / "golden" / "vila" / "checkpoints"
OPTIONS = {"cdpruner": ",relevance=none", "hiprune": ",object_layer=1"}  # of a small model
ABLE = [name for name, method in METHODS.items() if issubclass(method, TokenMethod | TowerMethod) and not method.merges]
SPECS = [f"{name}:0.4{OPTIONS.get(name, '')},positions=original" for name in ABLE]
LEAVING_SLOTS_UNUSED = [
    "hired:0.5,variant=code,swap=false,positions=original",
    "tower_norm:0.6,form=threshold,threshold=0.95,positions=original",
]
COMBINED = [
    "tower_norm:0.6,positions=original+random:0.5,positions=original",
    "tower_norm:0.6+random:0.5,positions=original",
]
WIDE, TALL, SQUARE = photo(33, 71), photo(90, 41), photo(60, 60)
ROWS = {
    "w10 <image> w11 w12 <image> w13": [WIDE, SQUARE],
    "w20 w21 w22": [],
    "<image> w30 w31 w32 w33": [TALL],
}
NEW_TOKENS = 10


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[Written, vila_jax.Model]:
    """A LLaVA-NeXT with any-res pictures, and a random scorer that transformers does not see."""
    folder = tmp_path_factory.mktemp("positions")
    pinpoints = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
    text = {"head_dim": 8, "max_position_embeddings": 256, "num_hidden_layers": 3}
    theirs = write(folder / "plain", next_=True, image_grid_pinpoints=pinpoints, text_args=text)
    checkpoint = open_checkpoint(theirs.folder)
    add_scorer(checkpoint, scorer_for(checkpoint), folder / "next")
    return theirs, vila_jax.from_pretrained(folder / "next", dtype="float32")


def spliced(theirs: Written, prompt: str, images: list) -> torch.Tensor:
    """What transformers' own text model is given for a prompt with all its visual tokens, `[T, D]`."""
    seen = []
    text = theirs.model.model.language_model
    hook = text.register_forward_pre_hook(lambda _, a, given: seen.append(given["inputs_embeds"][0]), with_kwargs=True)
    with torch.no_grad():
        theirs.model(**theirs.processor(text=[prompt], images=images or None, return_tensors="pt"))
    hook.remove()
    return seen[0]


@torch.no_grad()
def read(theirs: Written, left: torch.Tensor, positions: list[int]) -> tuple[np.ndarray, list[int]]:
    """Logits of transformers for tokens at these positions, and the ids with which it goes on."""
    text, head, cache = theirs.model.model.language_model, theirs.model.lm_head, None
    first, ids, embedded = None, [], left[None]
    for count in range(len(left), len(left) + NEW_TOKENS):
        mask, at = torch.ones(1, count, dtype=torch.long), torch.tensor([positions])
        out = text(inputs_embeds=embedded, attention_mask=mask, position_ids=at, past_key_values=cache, use_cache=True)
        logits, cache = head(out.last_hidden_state[0]), out.past_key_values
        first = logits.numpy() if first is None else first
        ids.append(int(logits[-1].argmax()))
        embedded, positions = text.embed_tokens(torch.tensor([[ids[-1]]])), [positions[-1] + 1]
    return first, ids


@pytest.mark.parametrize("spec", [*SPECS, *LEAVING_SLOTS_UNUSED, *COMBINED])
def test_answers_are_those_of_transformers_with_explicit_position_ids(both, spec):
    """Two any-res pictures in a row, none, one, as rows of a batch."""
    theirs, ours = both
    answers = ours.generate(list(ROWS), list(ROWS.values()), budget=spec, max_new_tokens=NEW_TOKENS, ignore_eos=True)
    for answer, (prompt, images) in zip(answers, ROWS.items(), strict=True):
        places, full = places_left(theirs, ours, prompt, images, spec), spliced(theirs, prompt, images)
        assert places[-1] == len(full) - 1 and (len(places) < len(full) or not images)
        if not spec.startswith("tower"):
            embedded = full[places]
        else:  # fewer tokens in the tower make other features
            embedded = torch.tensor(ours.embeddings(prompt, images, budget=spec))
        logits, ids = read(theirs, embedded, places)
        assert list(answer.token_ids) == ids
        if prompt == next(iter(ROWS)):
            np.testing.assert_allclose(ours.logits(prompt, images, budget=spec), logits, rtol=0, atol=1e-4)


def test_renumbered_is_something_else_and_the_default(both):
    theirs, ours = both
    prompt, images = next(iter(ROWS.items()))
    left = torch.tensor(ours.embeddings(prompt, images, budget="hired:0.4"))
    logits, ids = read(theirs, left, list(range(len(left))))
    for spec in ("hired:0.4", "hired:0.4,positions=renumbered"):
        np.testing.assert_allclose(ours.logits(prompt, images, budget=spec), logits, rtol=0, atol=1e-4)
        answer = ours.generate(prompt, images, budget=spec, max_new_tokens=NEW_TOKENS, ignore_eos=True)
        assert list(answer.token_ids) == ids
    original = ours.logits(prompt, images, budget="hired:0.4,positions=original")
    assert np.abs(original - logits).max() > 1e-2


@pytest.mark.parametrize("name", ABLE)
def test_keeping_everything_is_no_budget_bit_for_bit(both, name):
    spec = f"{name}:1{OPTIONS.get(name, '')},positions=original"
    assert Budget.parse(spec).is_full
    prompt, images = next(iter(ROWS.items()))
    np.testing.assert_array_equal(both[1].logits(prompt, images, budget=spec), both[1].logits(prompt, images))


def test_without_gaps_both_are_the_same(tmp_path):
    """A picture of a single tile, of which every patch is asked for by number: there is no newline to leave out."""
    model = vila_jax.from_pretrained(write(tmp_path).folder, dtype="float32")
    plain, *others = (
        model.logits("w5 <image> w6 w7", [SQUARE], budget=budget)
        for budget in (None, "random:16", "random:16,positions=original")
    )
    for other in others:
        np.testing.assert_array_equal(plain, other)


def test_fifty_photos_compile_one_set_of_programs(both, count_compilations):
    model, rng = both[1], np.random.default_rng(0)
    photos = [photo(*rng.integers(30, 120, 2), seed) for seed in range(50)]
    options = {"max_new_tokens": 2, "ignore_eos": True}
    for spec in ("hired:0.4,positions=original", "tower_norm:0.4,positions=original"):
        lengths = [model.generate("w5 <image> w6", [own], budget=spec, **options).usage.prompt_tokens for own in photos]
        assert len(set(lengths)) < len(photos)
        with count_compilations() as count:
            for image in photos:
                model.generate("w5 <image> w6", [image], budget=spec, **options)
        assert count() == 0


def test_the_prompt_without_the_budget_has_to_fit_the_context(both):
    prompt, images = "w5 <image> <image> <image>", [SQUARE] * 3
    both[1].generate(prompt, images, budget="hired:0.1", max_new_tokens=1)
    with pytest.raises(ContextLengthError, match=r"positions that positions=original leaves free.*leave positions=or"):
        both[1].generate(prompt, images, budget="hired:0.1,positions=original", max_new_tokens=1)
    full = len(both[1].embeddings("w5 <image> w6 w7", [SQUARE]))
    options = {"budget": "random:3,positions=original", "ignore_eos": True}
    both[1].generate("w5 <image> w6 w7", [SQUARE], max_new_tokens=256 - full, **options)
    with pytest.raises(ContextLengthError, match="= 257, but the model's context is 256"):
        both[1].generate("w5 <image> w6 w7", [SQUARE], max_new_tokens=257 - full, **options)


def positions_of(model, budget, **ask) -> np.ndarray:
    """Of the tokens that are left of a prompt."""
    request, chosen = model.request(**ask, budget=budget), Budget.parse(budget)
    layout = model.engine.planner.layout([request], chosen, 1)
    visual = model.engine.phases.visual_tokens(layout.tiles)
    prompts = close_gaps(layout.prompts, visual.valid)
    return np.asarray(rotary_positions(prompts, visual))[0, : int(prompts.lengths[0])]


@pytest.mark.parametrize(
    ("name", "budget"),
    [
        ("vila15_llama_siglip", "random:0.5"),
        ("nvila_lite_qwen2_dynamic", "random:0.5"),
        ("nvila_lite_qwen2_dynamic", "downsample:0.7+random:0.5"),
        ("nvila_qwen2_dynamic_s2", "random:0.5"),
    ],
)
def test_vila(name, budget):
    """Tokens column by column, tiles with text between them, blocks; the projectors merge windows.

    The visual tokens are found by their embeddings in the prompt without the step that chooses among them.
    """
    model = vila_jax.from_pretrained(VILA / name, dtype="float32")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 150, 3), dtype=np.uint8))
    ask = {
        "messages": [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "Y?"}]}]
    }
    before = budget.rpartition("+")[0] or None
    full, left = (model.embeddings(**ask, budget=own) for own in (before, budget))
    positions = positions_of(model, f"{budget},positions=original", **ask)
    assert len(positions) == len(left) < len(full)
    np.testing.assert_allclose(full[positions], left, rtol=0, atol=1e-5)
    assert (np.diff(positions) > 0).all() and positions[-1] == len(full) - 1


def test_places_count_newlines_and_text_between_segments():
    segments = [np.array([4, 5, -1, 6, 7, -1]), np.array([0, 2])]
    places, span = places_in_picture(segments, 8, between=3)
    assert [int(places[i]) for i in (4, 5, 6, 7, 0, 2)] == [0, 1, 3, 4, 9, 10]
    assert span == 11


def test_base_positions():
    base, end = base_positions([1, 22, 7, 31, 7, 33], 7, slots=[2, 3], spans=[5, 4])
    assert base.tolist() == [0, 1, 2, 2, 7, 8, 8, 8, 12] and end == 13
