"""Pruning by norm inside CLIP and SigLIP, against PyTorch towers whose tokens are really taken away, tile by tile."""

import numpy as np
import pytest
import torch

from tests.budgets.towers import DEPTH, KINDS, PATCHES, first_patch, in_torch, pixels, reduced
from tests.nn.oracle import close
from vila_jax.budgets import Step
from vila_jax.budgets.tower_norm import TowerNorm
from vila_jax.errors import BudgetError

PADDED = np.ones((3, PATCHES), bool)
PADDED[1, :21] = PADDED[1, 42:] = False
PADDED[2, 3:] = False


class Removed:
    """Takes tokens out of one tile; `choose` says which of them stay, of their norms and whether they show anything."""

    def __init__(self, kind, shown, choose):
        self.first, self.shown, self.choose = first_patch(kind), shown, choose
        self.left = np.arange(PATCHES)

    def __call__(self, block, x, keys):
        norms = x[0, self.first :].norm(dim=-1).numpy()
        stay = self.choose(block, norms, self.shown[self.left])
        self.left = self.left[stay]
        return torch.cat([x[:, : self.first], x[:, self.first :][:, stay]], dim=1)


def strongest(norms, shown, count):
    """Places of the `count` largest norms, and of what shows nothing the first."""
    return np.sort(np.lexsort((np.where(shown, -norms, 0), ~shown))[:count])


def compare(kind, rule, kept, shown, choose):
    """Every tile holds what is left of it after removal, and says what that is."""
    states, stand_in = reduced(kind, rule, kept, pixels(), shown)
    counts = []
    for tile in range(len(states)):
        removed = Removed(kind, shown[tile], choose)
        expected = in_torch(kind, pixels()[tile : tile + 1], removed, lambda: None)[0, removed.first :]
        own = np.full(PATCHES, -1)
        own[removed.left] = removed.left
        assert stand_in[tile].tolist() == own.tolist()
        close(states[tile][removed.left], expected, atol=2e-5)
        assert not states[tile][own < 0].any()
        counts.append(len(removed.left))
    return counts


@pytest.mark.parametrize(
    ("options", "kept", "blocks"),
    [({}, 9, (0, 3)), ({"first_layer": 1, "last_layer": -2}, 20, (1, 2))],
)
@pytest.mark.parametrize("kind", KINDS)
def test_static_schedule(kind, options, kept, blocks):
    first, last = blocks
    counts = [
        PATCHES - (PATCHES - kept) * min(max(i - first + 1, 0), last - first + 1) // (last - first + 1)
        for i in range(DEPTH)
    ]
    rule = TowerNorm(**options)
    assert rule.schedule(PATCHES, kept, DEPTH) == tuple(counts)
    left = compare(kind, rule, kept, PADDED, lambda block, norms, shown: strongest(norms, shown, counts[block]))
    assert left == [kept] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_threshold_masks_what_removal_takes_away(kind):
    def choose(block, norms, shown):
        if not 1 <= block <= 2:
            return np.arange(len(norms))
        passes = shown & (norms >= 0.95 * norms[shown].mean())
        passes[strongest(norms, shown, 1)] = True
        return np.flatnonzero(passes)

    rule = TowerNorm(form="threshold", threshold=0.95, first_layer=1, last_layer=2)
    counts = compare(kind, rule, PATCHES, PADDED, choose)
    assert len(set(counts)) > 1 and min(counts) >= 1  # as many as the picture has


def test_threshold_leaves_at_most_what_is_asked_for():
    def choose(block, norms, shown):
        passes = np.flatnonzero(shown & (norms >= 0.5 * norms[shown].mean()))
        return passes[strongest(norms[passes], shown[passes], 4)] if block == 3 else passes

    assert max(compare("clip", TowerNorm(form="threshold", threshold=0.5), 4, PADDED, choose)) == 4


def test_adaptive_threshold_is_a_quantile_of_the_tile():
    total = PADDED.sum(axis=1)
    schedule = TowerNorm().schedule(PATCHES, 20, DEPTH)
    expected = [-(-20 * shown // PATCHES) for shown in total.tolist()]
    states, stand_in = reduced("clip", TowerNorm(form="threshold", adaptive=True), 20, pixels(), PADDED)
    assert (stand_in >= 0).sum(axis=1).tolist() == expected
    assert schedule[-1] == 20

    def choose(block, norms, shown):
        return strongest(norms, shown, -(-schedule[block] * PATCHES // PATCHES))

    # Of a tile without padding the quantile is the schedule: masked and shorter sequences agree.
    removed = Removed("clip", PADDED[0], choose)
    shorter = in_torch("clip", pixels()[:1], removed, lambda: None)[0, 1:]
    close(states[0][removed.left], shorter, atol=2e-5)


def test_tokens_of_extreme_or_missing_norm():
    """A tile of NaN keeps as many tokens as the others."""
    broken = pixels()
    broken[1] = np.nan
    _, stand_in = reduced("clip", TowerNorm(), 9, broken)
    assert (stand_in >= 0).sum(axis=1).tolist() == [9, 9, 9]
    assert (reduced("clip", TowerNorm(form="threshold"), 9, broken)[1] >= 0).sum(axis=1).min() >= 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tower_norm:0.5,threshold=0.8", "form=static ranks tokens"),
        ("tower_norm:0.5,adaptive=true", "form=static ranks tokens"),
        ("tower_norm:0.5,form=threshold,threshold=0", "threshold is 0.0, but must be above 0"),
        ("tower_norm:0.5,form=other", "'other' is none of its values"),
    ],
)
def test_options_that_cannot_be(spec, message):
    with pytest.raises(BudgetError, match=message):
        Step.parse(spec)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first_layer": 23}, "block 23 does not exist.*option first_layer|option first_layer.*block 23"),
        ({"first_layer": 5, "last_layer": 4}, "first_layer is block 5, behind last_layer, block 4"),
    ],
)
def test_blocks_that_cannot_be(options, message):
    with pytest.raises(BudgetError, match=message):
        TowerNorm(**options).schedule(PATCHES, 9, 23)


def test_only_a_fixed_threshold_drops_tokens_when_everything_is_kept():
    assert Step.parse("tower_norm:1").is_full
    assert Step.parse("tower_norm:1,form=threshold,adaptive=true").is_full
    assert not Step.parse("tower_norm:1,form=threshold").is_full
