"""Merging methods and `pool` in whole models: what the decoder reads is what Hugging Face's tower and projector give.

The oracles of the selections are in `tests/budgets`; here they are fed with the attention, keys and features of
transformers, picture by picture, and the result goes through its projector.
"""

import pathlib

import numpy as np
import pytest
import torch

import vila_jax
from tests.budgets.merging import choose, merged
from tests.infer.checkpoints import photo
from vila_jax.budgets import Step, required_intermediates, total_tokens

SPECS = ("visionzip:12", "prumerge:12,neighbours=3", "prumerge+:0.3", "pool:12")
WIDE, SQUARE, TALL = photo(30, 75), photo(64, 60), photo(90, 41)
VILA = pathlib.Path(__file__).parents[1] / "golden" / "vila" / "checkpoints"


def tower(written, pixels):
    """Hidden states by block, attention of the class token by block, and keys and queries of the patches."""
    model = written.model.model.vision_tower
    found = {"q": [], "k": []}
    hooks = [
        getattr(block.self_attn, f"{kind}_proj").register_forward_hook(lambda *a, into=found[kind]: into.append(a[2]))
        for block in model.encoder.layers
        for kind in found
    ]
    with torch.no_grad():
        states = model(torch.from_numpy(pixels), output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    return states, found["q"], found["k"]


def inputs_of(written, step, pixels, config):
    """What a method reads of one picture, `{role: [1, P, ...]}`, and the features that it merges."""
    states, queries, keys = tower(written, pixels)
    heads = config.vision.num_heads
    made = {}
    for role, name in required_intermediates(step, config.vision, config.vision_depth).items():
        kind, _, block = name.partition("/")
        if kind == "class_token":
            made[role] = states[config.vision_depth][:, :1]
            continue
        q, k = queries[int(block)], keys[int(block)]
        n = 1 if kind.startswith("flat") else heads
        q, k = (x.unflatten(-1, (n, -1)) for x in (q, k))
        if kind == "keys":
            made[role] = k[:, 1:]
        else:
            scores = torch.einsum("rnh,rpnh->rnp", q[:, 0], k) * q.shape[-1] ** -0.5
            made[role] = scores.softmax(-1)[:, :, 1:].sum(1)
    return {role: x[None].numpy() for role, x in made.items()}, states[config.vision_depth].numpy()


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("picture", [WIDE, SQUARE], ids=["wide", "square"])
def test_any_res_as_hugging_face(written, model, spec, picture):
    step, config = Step.parse(spec), model.config.vlm
    [image] = model.preprocessor.pictures([picture])
    inputs, states = inputs_of(written, step, image.pixels, config)
    chosen = choose(spec, [image.geometry], inputs)
    patches = states[:, 1:].reshape(1, -1, states.shape[-1])
    tokens = merged(chosen, patches, states[None, :, 0] if "class_token" in inputs else None)[0][chosen.valid[0]]
    with torch.no_grad():
        expected = written.model.model.multi_modal_projector(torch.from_numpy(tokens).float()).numpy()
    embedded = model.embeddings("<image> w5", [picture], budget=spec)
    count = total_tokens(step, image.geometry)
    np.testing.assert_allclose(embedded[1 : 1 + count], expected, atol=1e-4)


@pytest.mark.parametrize("spec", SPECS)
def test_batches_of_several_pictures(model, spec, count_compilations):
    prompts, images = ["<image> w5 <image> w6", "w7 <image>"], [[WIDE, TALL], [SQUARE]]
    ask = {"max_new_tokens": 4, "budget": spec, "ignore_eos": True}
    together = model.generate(prompts, images, **ask)
    alone = [model.generate(prompt, own, **ask) for prompt, own in zip(prompts, images, strict=True)]
    assert [row.token_ids for row in together] == [row.token_ids for row in alone]
    with count_compilations() as count:
        for height, width in ((41, 90), (75, 30), (60, 64)):
            model.generate("w7 <image>", [photo(height, width)], **ask)
        assert count() == 0


@pytest.fixture(scope="module")
def vila():
    """SigLIP, dynamic tiles, a projector that merges windows of three patches."""
    return vila_jax.from_pretrained(VILA / "nvila_lite_qwen2_dynamic")


@pytest.mark.parametrize("spec", ["visionzip:8", "prumerge:8", "prumerge+:8", "pool:8"])
def test_cells_of_a_merging_projector(vila, spec, count_compilations):
    def ask(height, width):
        messages = [{"role": "user", "content": [{"type": "image", "image": photo(height, width)}]}]
        return vila.generate(messages=messages, max_new_tokens=2, budget=spec, ignore_eos=True)

    budget = vila._budget(spec)
    [image] = vila.preprocessor.pictures([photo(60, 150)])
    chosen = vila.engine.chosen(image, budget=budget)
    total = total_tokens(budget.step("tokens"), image.geometry)
    assert len(chosen.indices) == total == ask(60, 150).usage.visual_tokens_kept
    assert set(chosen.tiles.tolist()) <= set(range(image.geometry.num_tiles))
    with count_compilations() as count:
        for size in ((150, 60), (90, 200)):
            ask(*size)
        assert count() == 0


def test_pooled_cells(vila):
    """The mean of all cells of every tile, by hand, through the projector."""
    [image] = vila.preprocessor.pictures([photo(60, 150)])
    messages = [{"role": "user", "content": [{"type": "image", "image": photo(60, 150)}]}]
    tiles = image.geometry.num_tiles
    embedded = vila.embeddings(messages=messages, budget=f"pool:{tiles}")
    features = vila.engine.features(image)
    side = 5
    grid = np.pad(features.reshape(tiles, side, side, -1), ((0, 0), (0, 1), (0, 1), (0, 0)))
    cells = grid.reshape(tiles, 2, 3, 2, 3, -1).transpose(0, 1, 3, 2, 4, 5).reshape(tiles, 4, -1)
    projector = vila.engine.phases.programs
    expected = projector.call("project", _project, cells.mean(axis=1).astype(np.float32))
    rows = np.abs(embedded[:, None] - np.asarray(expected)[None]).max(-1)
    assert (rows.min(axis=0) < 1e-4).all()


def _project(graphdef, state, cells):
    from flax import nnx

    return nnx.merge(graphdef, state).project(cells)
