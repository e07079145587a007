"""HiRED, `variant=code`: bit for bit what the reference keeps, in the order in which it packs it."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vila_jax.budgets import Step, capacity, make_plan, select_tokens, stack_plans
from vila_jax.vision.geometry import TileGeometry

N = 576
NEXT = ["1x2_336x672", "1x3_300x700", "2x2_480x640", "2x2_672x672", "3x1_1100x336"]
E2E = ["next_1x2_china_200x420", "next_2x2_astronaut_400x400", "next_2x2_flower_366x500"]


def run(budget, geometry, first, last, max_tiles=5):
    """(mask [P, N], packed indices) of one picture, its tiles padded to the bucket with the worst of numbers."""
    inputs = {"content": first, "score": last}
    padded = {}
    for role, values in inputs.items():
        block = np.full((1, max_tiles, N), np.nan, np.float32)
        block[0, : len(values)] = values
        padded[role] = jnp.asarray(block)
    plan = stack_plans([make_plan(budget, geometry, max_tiles)])
    mask = budget.rule.keep(padded, jax.tree.map(jnp.asarray, plan))
    indices, valid, _ = select_tokens(budget, padded, plan, capacity(budget, max_tiles, N))
    return np.asarray(mask)[0], np.asarray(indices)[0][np.asarray(valid)[0]]


def geometry_of(data):
    return TileGeometry(24, tuple(data["image_size_hw"].tolist()), tuple(data["grid_hw"].tolist()))


def unpack(mask):
    return np.unpackbits(mask, axis=1)[:, :N].astype(bool)


@pytest.mark.parametrize("name", NEXT)
def test_llava_next(golden, name):
    data = np.load(golden / "budgets" / f"hired_next_{name}.npz")
    geometry = geometry_of(data)
    tags = [key.removesuffix("_mask") for key in data if key.endswith("_mask")]
    assert len(tags) == 9
    for tag in tags:
        rate, alpha = re.fullmatch(r"r(.*)_a(.*)", tag).groups()
        budget = Step.parse(f"hired:{rate},variant=code,alpha={alpha}")
        first, last = data["first_layer_cls_headsum"], data["last_layer_cls_headsum"]
        mask, packed = run(budget, geometry, first, last)
        tiles = geometry.num_tiles
        assert mask.sum(-1)[:tiles].tolist() == data[f"{tag}_kept_per_partition"].tolist(), tag
        assert not mask[tiles:].any()
        np.testing.assert_array_equal(mask[:tiles], unpack(data[f"{tag}_mask"]), err_msg=tag)
        np.testing.assert_array_equal(packed, data[f"{tag}_packed_source"], err_msg=tag)


@pytest.mark.parametrize("name", E2E)
def test_end_to_end_selections(golden, name):
    """Runs on real pictures, those with the grid exchange undone (`swap=false`) and those at rate 1 included."""
    data = np.load(golden / "budgets" / "hired_e2e" / f"{name}.npz")
    geometry = geometry_of(data)
    runs = [key.removesuffix("/mask") for key in data if key.endswith("/mask")]
    assert len(runs) in (3, 6)
    for tag in runs:
        rate, alpha = re.fullmatch(r"full()|r(.*)_a.*", tag.removesuffix("_fixgrid")).groups()[1] or "1", "0.5"
        swap = "false" if tag.endswith("_fixgrid") else "true"
        budget = Step.parse(f"hired:{rate},alpha={alpha},variant=code,swap={swap}")
        assert not budget.is_full
        first = np.full_like(data["layer22_headsum"], np.nan)  # only the overview's row may be read
        first[0] = data["layer0_headsum"]
        mask, packed = run(budget, geometry, first, data["layer22_headsum"])
        np.testing.assert_array_equal(mask[: geometry.num_tiles], unpack(data[f"{tag}/mask"]), err_msg=tag)
        np.testing.assert_array_equal(packed, data[f"{tag}/packed_source"], err_msg=tag)


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("max_tiles", [1, 5])
def test_llava15(golden, variant, max_tiles):
    data = np.load(golden / "budgets" / "hired_llava15_single.npz")
    score = data["cls_attn"][:, :, 1:].sum(1)
    for rate in data["rates"].tolist():
        budget = Step("hired", rate, (("variant", variant),))
        _, packed = run(budget, TileGeometry(24, (214, 320)), score[:1], score[:1], max_tiles)
        np.testing.assert_array_equal(packed, data[f"r{rate:.4f}_indices"])


def test_llava15_keeps_each_picture_its_own(golden):
    """Unlike the reference, which applies the mask of the first picture to all."""
    score = np.load(golden / "budgets" / "hired_llava15_single.npz")["cls_attn"][:, :, 1:].sum(1)
    budget = Step.parse("hired:0.2")
    plan = stack_plans([make_plan(budget, TileGeometry(24, (336, 336)), 1)] * 2)
    inputs = {role: jnp.asarray(score[:, None]) for role in ("content", "score")}
    indices, valid, _ = select_tokens(budget, inputs, plan, 115)
    assert valid.all()
    for image in range(2):
        assert indices[image].tolist() == np.sort(np.argsort(-score[image], kind="stable")[:115]).tolist()


def test_edges(golden):
    """Extreme alphas; where the reference raises (0 / 0), ours keeps the overview and shares evenly."""
    data = np.load(golden / "budgets" / "hired_edge_inputs.npz")
    counts = json.loads((golden / "budgets" / "hired_edge_counts.json").read_text())
    counts.pop("failed_cases")
    counts["r0.4_a1.0"] = [576, 144, 144, 144, 144]
    for tag, expected in counts.items():
        rate, alpha = re.fullmatch(r"r(.*)_a(.*)", tag).groups()
        budget = Step.parse(f"hired:{rate},alpha={alpha},variant=code")
        geometry = TileGeometry(24, (672, 672), (2, 2))
        mask, _ = run(budget, geometry, data["first_layer_cls_headsum"], data["last_layer_cls_headsum"])
        assert mask.sum(-1).tolist() == expected, tag


def test_everything_is_everything_whatever_alpha_is():
    geometry, first = TileGeometry(24, (672, 672), (2, 2)), np.zeros((5, N), np.float32)
    for alpha in ("0", "0.1", "1"):
        _, packed = run(Step.parse(f"hired:1,alpha={alpha},variant=code"), geometry, first, first)
        assert packed.tolist() == geometry.order().tolist()


def test_shares_are_truncated_in_float32():
    """100 of 460 content patches and 69 tokens: exactly 15, which float32 takes for 14.99…"""
    budget = Step.parse("hired:0.05,alpha=0.2,variant=code")
    geometry = TileGeometry(24, (336, 672), (1, 2))
    assert make_plan(budget, geometry, 3).extra["quota"][100] == 14


def test_nearly_everything_is_still_shared_out():
    """The tiles' part reaches (P - 1) * N here, yet the reference shares it by content and clamps."""
    geometry = TileGeometry(24, (672, 672), (2, 2))
    first = np.zeros((5, N), np.float32)
    first[0, : N // 4] = 1  # all content in the first strip
    mask, _ = run(Step.parse("hired:0.9,alpha=0.1,variant=code"), geometry, first, first)
    content = int(576 * 0.9)
    found = [144, 144, 144, content - 3 * 144]  # ties: the lowest index
    assert mask.sum(-1).tolist() == [259, *(min(576, int(np.float32(c) / np.float32(content) * 2304)) for c in found)]
