"""PruMerge and PruMerge+ against their authors' code, and against EffiVLM-Bench's form for SigLIP."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.budgets.merging import GOLDEN, choose, merged
from vila_jax.budgets.prumerge import spread
from vila_jax.errors import BudgetError
from vila_jax.nn.vit import class_attention, received_attention
from vila_jax.vision.geometry import TileGeometry

CLIP, SIGLIP = TileGeometry(24, (336, 336)), TileGeometry(27, (384, 384))
GRID = TileGeometry(4, (60, 100), (2, 2))


@pytest.fixture(scope="module")
def clip():
    return dict(np.load(GOLDEN / "prumerge_seed0.npz"))


@pytest.fixture(scope="module")
def siglip():
    return dict(np.load(GOLDEN / "siglip_prumerge_plus_fixed_budget.npz"))


def clip_inputs(golden):
    return {"score": golden["cls_attn"][:, None], "keys": golden["keys"][:, None, 1:, None]}


def test_attention_of_one_head(clip, siglip):
    """The scores that the tower is asked for, from its queries and keys."""
    found = class_attention(jnp.asarray(clip["q_cls"][:, None]), jnp.asarray(clip["keys"][:, :, None]))
    np.testing.assert_allclose(found[:, 0, 1:], clip["cls_attn"], rtol=1e-5)
    received = received_attention(jnp.asarray(siglip["q"][:, :, None]), jnp.asarray(siglip["k"][:, :, None]))
    np.testing.assert_allclose(received[:, 0], siglip["mean_attention_received"], rtol=1e-5)


@pytest.mark.parametrize(
    ("spec", "tokens", "indices"),
    [
        ("prumerge:78,sort=score", "prumerge_adaptive", "prumerge_topk_idx"),
        ("prumerge:73,sort=score", "prumerge_fixed_1_8", None),
        ("prumerge+:326,top=77,stride=2,sort=score", "prumerge_plus_adaptive", "prumerge_plus_idx"),
    ],
)
def test_as_the_authors(clip, spec, tokens, indices):
    chosen = choose(spec, [CLIP], clip_inputs(clip))
    assert chosen.valid.all() and chosen.indices[0, -1] == -1
    if indices is not None:
        np.testing.assert_array_equal(chosen.indices[0, :-1], clip[indices].reshape(-1))
    np.testing.assert_allclose(merged(chosen, clip["features_with_cls"][:, 1:]), clip[tokens], atol=1e-4)


@pytest.mark.parametrize(("share", "stride"), [("0.1", 10), ("0.2", 5), ("0.4", 2)])
def test_siglip(siglip, share, stride):
    """66 outliers of the attention, then regular samples as far as the budget goes."""
    tokens = siglip[f"b{share}_tokens"]
    inputs = {"score": siglip["mean_attention_received"][:, None], "keys": siglip["k"][:, None, :, None]}
    chosen = choose(f"prumerge+:{tokens.shape[1]},top=66,stride={stride},sort=score", [SIGLIP], inputs)
    np.testing.assert_array_equal(chosen.indices[0, :-1], siglip[f"b{share}_idx"][0])
    np.testing.assert_allclose(merged(chosen, siglip["features"]), tokens, atol=1e-4)


def test_raster_order_is_the_same_tokens(clip):
    by_score, raster = (choose(f"prumerge:78{o}", [CLIP], clip_inputs(clip)) for o in (",sort=score", ""))
    order = np.argsort(by_score.indices[0, :-1])
    np.testing.assert_array_equal(raster.indices[0, :-1], by_score.indices[0, order])
    np.testing.assert_array_equal(raster.weights[0, :-1], by_score.weights[0, order])
    np.testing.assert_array_equal(raster.weights[0, -1], by_score.weights[0, -1])


def test_tiles_by_score():
    """Tile after tile: the best first, then what is left of the tile."""
    rng = np.random.default_rng(0)
    inputs = {"score": rng.random((1, 5, 16), np.float32), "keys": rng.random((1, 5, 16, 2, 3), np.float32)}
    indices = choose("prumerge:30,sort=score", [GRID], inputs).indices[0]
    ends = np.flatnonzero(indices == -1)
    assert len(ends) == 5 and ends[-1] == 29
    for tile, own in enumerate(np.split(indices, ends + 1)[:5]):
        assert (own[:-1] // 16 == tile).all()
        scores = inputs["score"][0].reshape(-1)[own[:-1]]
        assert (np.diff(scores) <= 0).all()


def test_default_samples_cover_the_picture(clip):
    """Three quarters of what is kept lie evenly in the tile: no row of patches is without one at 30 %."""
    chosen = choose("prumerge+:0.3", [CLIP], clip_inputs(clip))
    assert set((chosen.indices[0, :-1] // 24).tolist()) == set(range(24))


def test_spread():
    rest = np.ones((1, 2, 12), bool)
    rest[0, 1, ::2] = False
    for count in range(7):
        kept = np.asarray(jax.jit(spread)(rest, np.full((1, 2), count, np.int32)))
        assert (kept.sum(-1) == count).all() and not (kept & ~rest).any()
    kept = np.asarray(jax.jit(spread)(rest, np.array([[4, 3]], np.int32)))
    assert np.flatnonzero(kept[0, 0]).tolist() == [0, 3, 6, 9]


def test_a_single_token_is_the_best_patch(clip):
    """With its neighbours; there is no token for the rest."""
    chosen = choose("prumerge:0.002,neighbours=3", [CLIP], clip_inputs(clip))
    assert chosen.indices.tolist() == [[clip["prumerge_topk_idx"][0, 0]]]
    assert np.count_nonzero(chosen.weights) == 4


@pytest.mark.parametrize("spec", ["prumerge:0.2,neighbours=-1", "prumerge+:0.2,top=-1", "prumerge+:0.2,stride=-3"])
def test_negative_options(spec):
    with pytest.raises(BudgetError, match="must not be negative"):
        choose(spec, [CLIP], {})
