"""VisionZip against its authors' code (CLIP, any-res order) and EffiVLM-Bench's form for SigLIP."""

import jax
import numpy as np
import pytest

from tests.budgets.merging import GOLDEN, choose, merged
from vila_jax.budgets import Step, make_plan
from vila_jax.budgets.merge import take
from vila_jax.errors import BudgetError
from vila_jax.vision.geometry import TileGeometry

TILE = TileGeometry(24, (336, 336))


def clip_inputs(golden):
    """What infer hands over: attention summed over heads, keys with an axis of (here one) heads."""
    return {
        "score": golden["cls_attn"].sum(1)[:, None, 1:],
        "keys": golden["metric"][:, None, 1:, None],
        "class_token": golden["hidden_states"][:, None, :1],
    }


@pytest.mark.parametrize("count", [64, 128, 192])
def test_as_the_authors(count):
    golden = np.load(GOLDEN / "visionzip.npz")
    features = golden["hidden_states"]
    chosen = choose(f"visionzip:{count}", [TILE] * 2, clip_inputs(golden))
    assert chosen.valid.all() and chosen.valid.shape == (2, count)
    expected = np.sort(golden[f"t{count}_all_indices_topk_order"][:, 1:], axis=1) - 1
    dominant = expected.shape[1]
    np.testing.assert_array_equal(chosen.indices[:, 0], -1)
    np.testing.assert_array_equal(chosen.indices[:, 1 : 1 + dominant], expected)
    tokens = merged(chosen, features[:, 1:], features[:, :1])
    np.testing.assert_allclose(tokens, golden[f"t{count}_tokens"], atol=1e-4)


@pytest.mark.parametrize("share", ["0.1", "0.2", "0.4"])
def test_siglip(share):
    """The attention received is given as a mean over heads, which ranks as the sum; merged tokens were in bfloat16."""
    golden = np.load(GOLDEN / "siglip_visionzip.npz")
    inputs = {"score": golden["attention_received"][:, None], "keys": golden["metric"][:, None, :, None]}
    tokens = golden[f"b{share}_tokens"]
    tile = TileGeometry(27, (384, 384))
    chosen = choose(f"visionzip:{tokens.shape[1]}", [tile] * 2, inputs)
    dominant = golden[f"b{share}_dominant_idx_sorted"]
    np.testing.assert_array_equal(chosen.indices[:, : dominant.shape[1]], dominant)
    result = merged(chosen, golden["hidden_states"])
    np.testing.assert_allclose(result[:, : dominant.shape[1]], tokens[:, : dominant.shape[1]], atol=1e-6)
    np.testing.assert_allclose(result, tokens, atol=5e-3)


@pytest.mark.parametrize(("name", "grid"), [("2x2", (2, 2)), ("w3h1", (1, 3))])
def test_anyres_order(name, grid):
    """The reference's numbers are `partition * 1000 + slot`: 0 the class token, 20 dominants, 4 contextual."""
    golden = np.load(GOLDEN / "visionzip_anyres_order.npz")
    geometry = TileGeometry(24, (336 * grid[0], 336 * grid[1]), grid)
    order = make_plan(Step.parse("visionzip:0.5"), geometry, geometry.num_tiles).extra["order"]
    tiles = geometry.num_tiles - 1
    kept, gathering = np.zeros((2, 1, tiles + 1, 576), bool)
    names = np.full(order.size, -1)
    by_kind = names[: kept.size], names[kept.size : 2 * kept.size], names[2 * kept.size :]
    for tile, numbered in enumerate(golden[f"keep_idx_{name}"]):
        patches = np.sort(numbered[numbered > 0]) - 1
        targets = np.setdiff1d(np.arange(576), patches)[::100][:4]
        kept[0, tile + 1, patches], gathering[0, tile + 1, targets] = True, True
        first = (tile + 1) * 576
        by_kind[0][first + patches] = tile * 1000 + 1 + np.arange(20)
        by_kind[1][first + targets] = tile * 1000 + 21 + np.arange(4)
        by_kind[2][tile + 1] = tile * 1000
    whole = np.arange(tiles + 1)[None] > 0
    numbers, valid = jax.jit(take, static_argnums=4)(kept, gathering, whole, order[None], 25 * tiles)
    assert valid.all()
    np.testing.assert_array_equal(names[np.asarray(numbers)[0]], golden[f"order_{name}"])


def test_what_joins_no_target_is_lost():
    """Without contextual tokens only patches are left, as they are."""
    golden = np.load(GOLDEN / "visionzip.npz")
    chosen = choose("visionzip:40,contextual=0", [TILE] * 2, clip_inputs(golden))
    assert (np.count_nonzero(chosen.weights, axis=2) == 1).all() and (chosen.weights.sum(2) == 1).all()


@pytest.mark.parametrize("value", ["1", "-0.1"])
def test_contextual_is_a_part(value):
    with pytest.raises(BudgetError, match="at least 0 and below 1"):
        Step.parse(f"visionzip:0.2,contextual={value}")
