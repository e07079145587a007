"""Methods that keep patches, against the choices of their authors' code."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from tests.budgets.selecting import kept
from vila_jax.budgets.cdpruner import most_probable, relevance_to_text
from vila_jax.budgets.greedy import cosines
from vila_jax.vision.geometry import TileGeometry

ONE_TILE, TWO_TILES = TileGeometry(24, (336, 336)), TileGeometry(24, (336, 336), (1, 1))
N = 576


@pytest.fixture
def vectors(golden):
    return lambda name: np.load(golden / "budgets" / f"{name}.npz")


def recorded(mask):
    """Packed masks of the reference, as booleans."""
    return np.unpackbits(mask, axis=-1)[..., :N].astype(bool)


@pytest.mark.parametrize("ratio", [0.098, 0.1, 0.2, 0.4])
def test_divprune(vectors, ratio):
    data = vectors("divprune")
    order = data[f"r{ratio}_order"]
    mask = kept(f"divprune:{len(order)}", ONE_TILE, {"tokens": data["features"][None]})
    assert np.flatnonzero(mask).tolist() == sorted(order.tolist())


@pytest.mark.parametrize("count", [58, 115, 144, 230])
@pytest.mark.parametrize("name", ["fastervlm", "cls"])
def test_fastervlm(vectors, name, count):
    data = vectors("fastervlm_vispruner")
    mask = kept(f"{name}:{2 * count}", TWO_TILES, {"score": data["cls_attn"].sum(1)})
    np.testing.assert_array_equal(mask, recorded(data[f"fastervlm_T{count}_mask"]))


@pytest.mark.parametrize(("count", "ratio"), [(64, 0.5), (116, 0.5), (128, 0.5), (232, 0.5), (64, 0.75)])
def test_vispruner(vectors, count, ratio):
    data = vectors("fastervlm_vispruner")
    assert sum(re.match("vispruner", key) is not None for key in data) == 5
    inputs = {"score": data["cls_attn"].sum(1), "features": data["features"]}
    mask = kept(f"vispruner:{2 * count},ratio={ratio}", TWO_TILES, inputs)
    np.testing.assert_array_equal(mask, recorded(data[f"vispruner_T{count}_r{ratio}_mask"]))


@pytest.mark.parametrize("count", [64, 128, 230])
def test_hiprune(vectors, count):
    data = vectors("hiprune")
    inputs = {"objects": data["object_layer_colmean"], "score": data["deep_layer_colmean"]}
    mask = kept(f"hiprune:{2 * count},variant=code", TWO_TILES, inputs)
    np.testing.assert_array_equal(mask, recorded(data[f"T{count}_mask"]))


@pytest.mark.parametrize("count", [16, 32, 64])
def test_cdpruner(vectors, count):
    data = vectors("cdpruner")
    everything = jnp.ones((1, 2, N), bool)
    patches, texts = jnp.asarray(data["image_embeds"][None]), jnp.asarray(data["text_embeds"][None])
    relevance = relevance_to_text(patches, texts, everything)
    expected = recorded(data[f"T{count}_mask"])
    features = np.stack([data["features"], data["features"][::-1]])  # the second tile's were not stored
    mask = kept(f"cdpruner:{2 * count}", TWO_TILES, {"tokens": features, "relevance": np.asarray(relevance[0])})
    np.testing.assert_array_equal(mask[0], expected)
    alone = most_probable(cosines(jnp.asarray(features[:1])), relevance[:, 0], everything[:, 0], jnp.array([count]))
    np.testing.assert_array_equal(alone[0], expected)
