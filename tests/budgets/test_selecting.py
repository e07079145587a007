"""Methods that keep patches, where no recorded vector says what is right: small pictures against plain Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.budgets.selecting import farthest_first, kept, unit
from vila_jax.budgets import Budget, Step, make_plan, select_tokens, stack_plans, total_tokens
from vila_jax.budgets.cdpruner import most_probable, relevance_to_text
from vila_jax.budgets.greedy import cosines
from vila_jax.budgets.hiprune import neighbours
from vila_jax.budgets.uniform import evenly_spaced
from vila_jax.errors import BudgetError
from vila_jax.vision.geometry import TileGeometry

SIDE = 5
N = SIDE**2
ONE_TILE, PADDED = TileGeometry(SIDE, (50, 50)), TileGeometry(SIDE, (60, 100), (2, 2))


def flat(mask):
    return np.flatnonzero(mask).tolist()


# Shares of the tiles.


def test_tiles_share_by_what_they_show():
    """34 tokens for 25 patches of the overview and 4 x 15 of the tiles; padding, though it scores best, gets none."""
    real = PADDED.real()
    assert real.sum(1).tolist() == [25, 15, 15, 15, 15]
    score = np.where(real, np.random.default_rng(0).random(real.shape), 9)
    mask = kept("fastervlm:34", PADDED, {"score": score})
    assert mask.sum(1).tolist() == [10, 6, 6, 6, 6] and not (mask & ~real).any()
    for own, tile_scores, shown in zip(mask, score, real, strict=True):
        assert tile_scores[own].min() > tile_scores[shown & ~own].max()


@pytest.mark.parametrize("name", ["fastervlm", "vispruner", "hiprune", "cdpruner", "norm"])
def test_fewer_tokens_than_tiles(name):
    with pytest.raises(BudgetError, match=r"4 token.*5 tiles.*at least 5.*divprune"):
        make_plan(Step(name, 4), PADDED, 5)
    assert total_tokens(Step(name, 5), PADDED) == 5


@pytest.mark.parametrize("name", ["divprune", "uniform"])
def test_methods_that_see_a_picture_as_one_need_no_token_for_each_tile(name):
    assert total_tokens(Step(name, 4), PADDED) == 4


# DivPrune.


def test_divprune_sees_all_tiles_as_one_sequence_and_no_padding():
    tokens = np.random.default_rng(1).normal(size=(5, N, 6)).astype(np.float32)
    mask = kept("divprune:11", PADDED, {"tokens": tokens})
    assert flat(mask) == farthest_first(tokens.reshape(-1, 6), flat(PADDED.real()), 11)


def test_a_token_without_direction_resembles_none():
    features = np.array([[3.0, 4.0], [0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0], [6.0, 8.0]], np.float32)
    expected = np.zeros((5, 5), np.float32)
    expected[np.ix_([0, 4], [0, 4])] = 1
    np.testing.assert_allclose(cosines(jnp.asarray(features)), expected, atol=1e-6)


# VisPruner.


def without_duplicates(listed, target, similarity):
    """The rule of the page, on lists."""
    while len(listed) > target:
        compared, partners = listed[::2], listed[1::2]
        likeness = {i: max((similarity[i, j] for j in partners), default=0) for i in compared}
        dropped = min(8, len(listed) - target, len(compared))
        listed = sorted(compared, key=lambda i: -likeness[i])[dropped:] + partners
    return listed


@pytest.mark.parametrize(
    ("count", "ratio"), [(2, 0.5), (8, 0.5), (9, 0.5), (11, 0.3), (12, 0.3), (14, 0.0), (7, 1.0), (24, 0.5)]
)
def test_vispruner_for_lists_of_any_length(count, ratio):
    """Even and odd ones; the reference stops at odd ones."""
    rng = np.random.default_rng(count)
    score, features = rng.random((1, N)), rng.normal(size=(1, N, 4)).astype(np.float32)
    mask = kept(f"vispruner:{count},ratio={ratio}", ONE_TILE, {"score": score, "features": features})
    ranking, important = np.argsort(-score[0]).tolist(), int(count * ratio)
    similarity = unit(features[0]) @ unit(features[0]).T
    diverse = without_duplicates(ranking[important:], count - important, similarity)
    assert flat(mask) == sorted(ranking[:important] + diverse)


# HiPrune.


def test_neighbours():
    inside = neighbours(4, wrap=False).T
    assert inside[5].tolist() == [4, 6, 1, 9]
    assert inside[0].tolist() == [0, 1, 0, 4] and inside[7].tolist() == [6, 7, 3, 11]
    around = neighbours(4, wrap=True).T
    assert around[7].tolist() == [6, 8, 3, 11] and around[1].tolist() == [0, 2, 0, 5]
    assert around[15].tolist() == [14, 15, 11, 15]


def test_hiprune_anchors_then_buffers_then_registers():
    objects, score = np.zeros((1, N)), np.linspace(0, 0.1, N)[None].copy()
    objects[0, [4, 12]] = 1, 2
    score[0, [20, 21]] = 1, 2

    def choice(alpha):
        return flat(kept(f"hiprune:10,alpha={alpha}", ONE_TILE, {"objects": objects, "score": score}))

    assert choice(0.0) == list(range(15, 25))
    assert choice(0.5) == sorted([12, 7, 11, 13, 17, 20, 21, 22, 23, 24])
    assert choice(1.0) == sorted([4, 12, 3, 9, 7, 11, 13, 17, 20, 21])  # patch 4, in a corner, has two neighbours


def test_hiprune_anchors_come_first_where_buffers_do_not_fit():
    """Three tokens, one anchor: of its four neighbours the two that the last block attends to most."""
    objects, score = np.zeros((1, N)), np.zeros((1, N))
    objects[0, 12], score[0, [7, 11, 13, 17]], score[0, 0] = 1, (1, 4, 2, 3), 9
    mask = kept("hiprune:3,alpha=1.0", ONE_TILE, {"objects": objects, "score": score})
    assert flat(mask) == [11, 12, 17]


# CDPruner.


def greedy_determinant(kernel, count):
    """Again and again the patch that makes the determinant of the chosen ones' kernel largest."""
    chosen: list[int] = []
    while len(chosen) < count:
        left = [i for i in range(len(kernel)) if i not in chosen]
        chosen.append(max(left, key=lambda i: np.linalg.det(kernel[np.ix_([*chosen, i], [*chosen, i])])))
    return chosen


def test_most_probable_set_and_what_follows_it():
    """Seven dimensions hold seven independent patches; the others follow by relevance, each once."""
    rng = np.random.default_rng(3)
    features, relevance = rng.normal(size=(1, N, 7)).astype(np.float32), rng.uniform(0.2, 1, (1, N)).astype(np.float32)
    similarity = unit(features[0].astype(np.float64)) @ unit(features[0].astype(np.float64)).T
    order = greedy_determinant(relevance[0][:, None] * similarity * relevance[0], 7)
    order += sorted(set(range(N)) - set(order), key=lambda i: -relevance[0, i])
    for count in (1, 4, 7, 12, N):
        mask = most_probable(
            cosines(jnp.asarray(features)), jnp.asarray(relevance), jnp.ones((1, N), bool), jnp.array([count])
        )
        assert flat(mask) == sorted(order[:count])


def test_relevance_is_what_answers_least():
    """Minus the cosine, as in the reference, scaled over the real patches of a picture; all alike: all 1."""
    rng = np.random.default_rng(4)
    patches, texts = (rng.normal(size=shape).astype(np.float32) for shape in ((1, 2, 6, 3), (1, 2, 3)))
    candidates = np.ones((1, 2, 6), bool)
    candidates[0, 1, 3:] = False
    relevance = np.asarray(relevance_to_text(*map(jnp.asarray, (patches, texts, candidates))))
    cosine = (unit(patches)[0] @ unit(texts)[0].T).mean(-1)
    real = candidates[0]
    expected = (cosine[real].max() - cosine) / (cosine[real].max() - cosine[real].min())
    np.testing.assert_allclose(relevance[0][real], expected[real], atol=1e-5)
    assert (relevance[0][real] > 0).all() and (relevance[0][~real] == 0).all()
    same = relevance_to_text(jnp.ones((1, 1, 6, 3)), jnp.asarray(texts), jnp.ones((1, 1, 6), bool))
    np.testing.assert_allclose(same, 1)


# Norm and uniform.


@pytest.mark.parametrize(("which", "expected"), [("high", [3, 24]), ("low", [0, 7])])
def test_norm(which, expected):
    features = np.ones((1, N, 2))
    features[0, [3, 24]], features[0, [0, 7]] = -5, 0.1
    assert flat(kept(f"norm:2,which={which}", ONE_TILE, {"features": features})) == expected


@pytest.mark.parametrize("shape", [(5, 5), (3, 11), (11, 3), (1, 7), (7, 1)])
def test_evenly_spaced(shape):
    """Any number of distinct cells; halves of the grid hold equally many, up to one line, or one cell of each line."""
    height, width = shape
    for count in range(1, height * width + 1):
        rows, columns = evenly_spaced(height, width, count)
        assert len({*zip(rows.tolist(), columns.tolist(), strict=True)}) == count
        assert min(rows.min(), columns.min()) >= 0 and rows.max() < height and columns.max() < width
        for place, size, uneven in (
            (rows, height, np.bincount(rows).max()),
            (columns, width, len(np.unique(rows))),
        ):
            first, second = (place < size // 2).sum(), (place > (size - 1) // 2).sum()
            assert abs(int(first) - int(second)) <= uneven
    assert len(evenly_spaced(height, width, 0)[0]) == 0
    assert sorted(zip(*(x.tolist() for x in evenly_spaced(4, 4, 4)), strict=True)) == [(1, 1), (1, 3), (3, 1), (3, 3)]


def test_uniform_covers_the_picture_evenly():
    """No patch of the mosaic is farther from a kept one than the distance between kept ones."""
    geometry = TileGeometry(8, (300, 700), (1, 3))
    mask = kept("uniform:40", geometry, {}).reshape(-1)
    mosaic = geometry.mosaic()
    share = mosaic.size / geometry.real().sum()
    assert abs(mask[mosaic].sum() - 40 * share) <= 0.5 and mask[geometry.overview()].sum() == 40 - mask[mosaic].sum()
    places = np.argwhere(mask[mosaic])
    cells = np.argwhere(np.ones(mosaic.shape))
    reach = np.abs(cells[:, None] - places[None]).max(-1).min(1).max()
    assert reach <= np.sqrt(mosaic.size / len(places))


# What is asked for.


def test_cls_is_another_name():
    budget = Budget.parse("cls:0.3,layer=2")
    assert budget == Budget.parse("fastervlm:0.3,layer=2") and str(budget) == "fastervlm:0.3,layer=2"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("clss:0.2", ["'clss'", "Did you mean 'cls'"]),
        ("cls:0.2,alpha=1", ["unknown option 'alpha'", "layer"]),
        ("vispruner:0.2,ratio=1.5", ["ratio is 1.5", "by attention", "0 to 1"]),
        ("hiprune:0.2,alpha=-1", ["alpha is -1", "anchors", "0 to 1"]),
        ("norm:0.2,which=best", ["'best'", "high", "low"]),
        ("cdpruner:0.2,relevance=picture", ["'picture'", "text", "none"]),
        ("divprune:0.2,layer=1", ["unknown option 'layer'", "divprune"]),
        ("uniform:0", ["KEEP is 0"]),
        ("divprune:0.2+cls:0.3", ["divprune and fastervlm both work"]),
    ],
)
def test_refused(text, said):
    with pytest.raises(BudgetError) as error:
        Budget.parse(text)
    for words in said:
        assert words in str(error.value)


# Training.


@pytest.mark.parametrize("spec", ["divprune:7", "cdpruner:7,relevance=none", "vispruner:7", "norm:7", "hiprune:7"])
def test_gradients_reach_what_is_kept_and_nothing_else(spec):
    step = Step.parse(spec)
    plan = stack_plans([make_plan(step, ONE_TILE, 1)])
    rng = np.random.default_rng(5)
    score, start = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((1, 1, N), (1, 1, N, 4)))

    def loss(features):
        inputs = {"score": score, "objects": score, "features": features, "tokens": features}
        chosen = select_tokens(step, inputs, plan, 7)
        return features.reshape(N, 4)[chosen.indices[0]].sum(), chosen

    gradient, chosen = jax.jit(jax.grad(loss, has_aux=True))(start)
    expected = np.zeros((N, 4))
    expected[chosen.indices[0]] = 1
    np.testing.assert_array_equal(gradient.reshape(N, 4), expected)
