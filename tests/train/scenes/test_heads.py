"""The loss of patch labels, computed again label by label."""

import jax.numpy as jnp
import numpy as np
import pytest

from train.data.labels import IGNORED
from train.scenes.heads import initial_heads, label_sums
from train.weights import group_of
from vila_jax.scenes import NUM_COLORS, NUM_CONTENTS

WIDTH, ROWS, TILES, PATCHES = 8, 2, 3, 4


@pytest.fixture(scope="module")
def weights():
    return initial_heads(WIDTH, 1)


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(0)
    shape = ROWS, TILES
    return rng.standard_normal((*shape, PATCHES, WIDTH), np.float32), rng.standard_normal((*shape, WIDTH), np.float32)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    return {
        "colors": rng.integers(0, NUM_COLORS, (ROWS, TILES, PATCHES)).astype(np.int32),
        "contents": rng.integers(0, 3, (ROWS, TILES, PATCHES)).astype(np.int32),
        "present": rng.integers(0, 2, (ROWS, TILES, NUM_COLORS * NUM_CONTENTS)).astype(np.int32),
    }


def expected(weights, patches, token, batch, tiles):
    """The three means over the given tiles, `(row, tile)` each."""
    w = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    means = []
    for head, name in (("color", "colors"), ("content", "contents")):
        losses, weighed = 0.0, 0.0
        for at in tiles:
            for patch, label in zip(patches[at], batch[name][at], strict=True):
                scores = w[f"heads.{head}.weight"] @ patch + w[f"heads.{head}.bias"]
                weight = 1.0 if label else 0.2
                losses += weight * (np.log(np.sum(np.exp(scores))) - scores[label])
                weighed += weight
        means.append(losses / weighed)
    presence = []
    for at in tiles:
        scores = w["heads.presence.weight"] @ token[at] + w["heads.presence.bias"]
        likely = 1 / (1 + np.exp(-scores))
        presence.append(-np.log(np.where(batch["present"][at] == 1, likely, 1 - likely)))
    return means[0] + means[1] + 4 * np.mean(presence)


def test_loss_and_hits(weights, features, batch):
    assert {group_of(name) for name in weights} == {"heads"}
    patches, token = features
    sums = label_sums(weights, *map(jnp.asarray, features), batch)
    every = [(row, tile) for row in range(ROWS) for tile in range(TILES)]
    shown = int((batch["contents"] > 0).sum())
    np.testing.assert_allclose(sums.loss / shown, expected(weights, patches, token, batch, every), rtol=1e-5)
    guesses = np.argmax(patches @ np.asarray(weights["heads.content.weight"]).T, -1)  # fresh biases are zero
    assert sums.targets == shown
    assert sums.right == np.sum((guesses == batch["contents"]) & (batch["contents"] > 0))


def test_empty_slots_count_for_nothing(weights, features, batch):
    patches, token = features
    padded = {name: np.array(value) for name, value in batch.items()}
    for value in padded.values():
        value[1, 1:] = IGNORED
    tiles = [(0, 0), (0, 1), (0, 2), (1, 0)]
    sums = label_sums(weights, *map(jnp.asarray, features), padded)
    shown = sum(int((batch["contents"][at] > 0).sum()) for at in tiles)
    assert sums.targets == shown
    np.testing.assert_allclose(sums.loss / shown, expected(weights, patches, token, batch, tiles), rtol=1e-5)
    nothing = {name: np.full_like(value, IGNORED) for name, value in batch.items()}
    assert label_sums(weights, *map(jnp.asarray, features), nothing).loss == 0
