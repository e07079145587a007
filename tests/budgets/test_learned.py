"""`learned`: the patches with the best scores, over the whole picture or tile by tile."""

import jax
import numpy as np
import pytest

from vila_jax import assets
from vila_jax.budgets import Step, capacity, make_plan, required_intermediates, select_tokens, stack_plans, total_tokens
from vila_jax.errors import BudgetError
from vila_jax.hf.checkpoint import open_checkpoint
from vila_jax.nn.config import VisionConfig
from vila_jax.vision.geometry import TileGeometry

SIDE, TILES = 4, 5
SIGLIP = VisionConfig("siglip", 32, 64, 24, 2, 384, 14, "gelu_tanh", 1e-6)
GEOMETRIES = [TileGeometry(SIDE, (60, 100), (2, 2)), TileGeometry(SIDE, (33, 100), (1, 3))]  # both with padding

select = jax.jit(select_tokens, static_argnums=(0, 3))


def kept(spec: str, scores: np.ndarray) -> list[list[int]]:
    """Flat indices of the kept patches, ascending."""
    step = Step.parse(spec)
    plan = stack_plans([make_plan(step, geometry, TILES) for geometry in GEOMETRIES])
    chosen = jax.device_get(select(step, {"score": scores}, plan, capacity(step, TILES, SIDE**2)))
    return [sorted(row[used].tolist()) for row, used in zip(chosen.indices, chosen.valid, strict=True)]


@pytest.fixture
def scores():
    """With ties, and padding scored best of all."""
    drawn = np.random.default_rng(0).integers(0, 12, (2, TILES, SIDE**2)).astype(np.float32)
    for row, geometry in zip(drawn, GEOMETRIES, strict=True):
        row[: geometry.num_tiles][~geometry.real()] = 99
    return drawn


@pytest.mark.parametrize("spec", ["learned:0.3", "learned:17"])
def test_the_best_of_the_whole_picture(spec, scores):
    for row, geometry, own in zip(scores, GEOMETRIES, kept(spec, scores), strict=True):
        real = np.flatnonzero(geometry.real())
        by_score = real[np.argsort(-row.reshape(-1)[real], kind="stable")]
        assert own == sorted(by_score[: total_tokens(Step.parse(spec), geometry)].tolist())


def test_every_tile_has_its_share(scores):
    """12 tokens in proportion to real patches, whose numbers divide evenly here."""
    geometry = GEOMETRIES[0]
    own = kept("learned:12,per_tile=true", scores)[0]
    room = geometry.real().sum(1)
    share = 12 * room / room.sum()
    for tile in range(geometry.num_tiles):
        mine = [i for i in own if i // SIDE**2 == tile]
        assert abs(len(mine) - share[tile]) < 1
        real = np.flatnonzero(geometry.real()[tile])
        best = real[np.argsort(-scores[0, tile][real], kind="stable")][: len(mine)]
        assert mine == sorted((tile * SIDE**2 + best).tolist())
    assert len(own) == 12


def test_it_reads_the_scorer_alone():
    """No class token, no attention: any tower will do."""
    assert required_intermediates(Step.parse("learned:0.2"), SIGLIP, 26) == {"score": "learned_score"}


def test_a_model_without_scorer_is_told_how_to_get_one(golden):
    config = open_checkpoint(golden / "vila" / "checkpoints" / "vila15_llama_siglip", weights=False).config.vlm
    rule = Step.parse("learned:0.2").token_method
    with pytest.raises(BudgetError, match=r"no token scorer.*python -m train scorer --model"):
        rule.check(config)
    rule.check(open_checkpoint(assets.nano(), weights=False).config.vlm)
