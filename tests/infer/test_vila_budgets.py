"""HiRED on towers without class token and behind projectors that merge: which cells are kept, and what becomes of them.

The oracle of the scores is transformers' own SigLIP with the same weights and eager attention.
"""

import pathlib

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from PIL import Image

from vila_jax.model import Model, from_pretrained

CHECKPOINTS = pathlib.Path(__file__).parents[1] / "golden" / "vila" / "checkpoints"
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 150, 3), dtype=np.uint8))
NAMES = ("vila15_llama_siglip", "nvila_lite_qwen2_dynamic", "nvila_qwen2_dynamic_s2", "v1arch_llama_clip_pad")


@pytest.fixture(scope="module")
def load():
    models: dict[str, Model] = {}

    def get(name: str) -> Model:
        return models.setdefault(name, from_pretrained(CHECKPOINTS / name)) if name not in models else models[name]

    return get


def received(name: str, pixels: np.ndarray, block: int) -> np.ndarray:
    """Attention that every patch receives, summed over heads, averaged over queries, `[tiles, side, side]`."""
    folder = CHECKPOINTS / name / "vision_tower"
    config = transformers.SiglipVisionConfig.from_pretrained(folder, attn_implementation="eager")
    config.vision_use_head = False
    tower = transformers.SiglipVisionModel(config).eval()
    state = safetensors.torch.load_file(folder / "model.safetensors")
    state = {k.removeprefix("vision_model."): v.float() for k, v in state.items() if ".head." not in k}
    names = tower.state_dict()
    prefix = "vision_model." if next(iter(names)).startswith("vision_model.") else ""
    tower.load_state_dict({prefix + k: v for k, v in state.items()})
    with torch.no_grad():
        attention = tower(torch.from_numpy(pixels), output_attentions=True).attentions[block]
    scores = attention.mean(dim=2).sum(dim=1).numpy()
    side = int(scores.shape[-1] ** 0.5)
    return scores.reshape(-1, side, side)


def pooled(scores: np.ndarray, window: int) -> np.ndarray:
    """Sums over windows, one cell after another."""
    side = scores.shape[1]
    cells = -(-side // window)
    return np.array(
        [
            [
                tile[r * window : (r + 1) * window, c * window : (c + 1) * window].sum()
                for r in range(cells)
                for c in range(cells)
            ]
            for tile in scores
        ]
    )


def test_the_cells_that_receive_most_are_kept(load):
    model = load("vila15_llama_siglip")
    [image] = model.preprocessor.pictures([PICTURE])
    kept = model.engine.selection(image, budget=model._budget("hired:2"))
    scores = pooled(received("vila15_llama_siglip", image.pixels, block=1), window=2)[0]
    assert set(kept.tolist()) == set(np.argsort(-scores, kind="stable")[:2].tolist())


def test_every_tile_keeps_its_own_best(load):
    """Two of three windows in the overview by alpha; in each tile of the grid the best, as many as Eq. 1 grants."""
    name = "nvila_lite_qwen2_dynamic"
    model = load(name)
    [image] = model.preprocessor.pictures([PICTURE])
    kept = model.engine.selection(image, budget=model._budget("hired:8,alpha=0.25"))
    scores = pooled(received(name, image.pixels, block=1), window=3)
    per_tile = [[i % 4 for i in kept if i // 4 == tile] for tile in range(len(scores))]
    assert len(per_tile[0]) == 2 and sum(map(len, per_tile)) == 8
    for tile, cells in zip(scores, per_tile, strict=True):
        assert set(cells) == set(np.argsort(-tile, kind="stable")[: len(cells)].tolist())


@pytest.mark.parametrize("name", NAMES)
def test_kept_tokens_are_those_of_the_full_prompt(load, name):
    """A budget leaves tokens out and changes none that it keeps."""
    model = load(name)
    budget = model._budget("hired:0.5")
    ask = {"messages": [{"role": "user", "content": [{"type": "image", "image": PICTURE}]}]}
    full, some = model.embeddings(**ask), model.embeddings(**ask, budget=budget)
    [image] = model.preprocessor.pictures([PICTURE])
    kept = model.engine.selection(image, budget=budget)
    assert len(kept) == image.geometry.real().sum() // 2
    rows = [np.abs(full - row).max(axis=1).min() for row in some]
    assert max(rows) < 1e-6
    text = len(some) - len(kept)
    tiles = model.engine.planner.segments(image.geometry, None)
    extra = (1 + len(model.form.after_image)) * (tiles - 1)  # each further tile brings a line end, and what follows it
    assert len(full) == text + image.geometry.real().sum() + extra


@pytest.mark.parametrize("name", NAMES)
def test_one_compilation_for_all_pictures(load, name, count_compilations):
    model = load(name)
    ask = [{"type": "text", "text": "What is this?"}]
    sizes = [(60, 150), (150, 60), (90, 200), (200, 110)] if "nvila" in name else [(60, 150), (90, 100)]

    def run(height: int, width: int) -> None:
        picture = Image.fromarray(np.full((height, width, 3), 77, np.uint8))
        messages = [{"role": "user", "content": [{"type": "image", "image": picture}, *ask]}]
        model.generate(messages=messages, max_new_tokens=2, budget="hired:4", ignore_eos=True)

    run(*sizes[0])
    with count_compilations() as count:
        for size in sizes[1:]:
            run(*size)
    assert count() == 0


def test_blocks_share_by_their_own_attention(load):
    """Without an overview every block is given its part, and what is kept is exactly what was asked for."""
    model = load("nvila_qwen2_dynamic_s2")
    [image] = model.preprocessor.pictures([PICTURE])
    assert not image.geometry.has_overview
    for count in (2, 7, 20):
        kept = model.engine.selection(image, budget=model._budget(f"hired:{count}"))
        assert len(set(kept.tolist())) == count
