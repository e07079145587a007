"""VILA's projectors against vectors recorded from the reference, under VILA's names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.nn.oracle import close
from vila_jax.errors import ConfigError
from vila_jax.nn.config import ProjectorConfig
from vila_jax.nn.params import abstract
from vila_jax.nn.projector import Projector, pool_windows
from vila_jax.nn.projector_types import layer_indices, projector_config

KINDS = (
    "identity",
    "linear",
    "mlp2x_gelu",
    "mlp3x_gelu",
    "mlp_downsample",
    "mlp_downsample_2x2_fix",
    "mlp_downsample_3x3_fix",
    "mlp_downsample_3x3_s2",
    "mlp_downsample_3x3_s2_new",
)


def recorded(kind: str, data) -> tuple[nnx.GraphDef, nnx.State]:
    """Our projector with the recorded weights, every one of which is used."""
    config = projector_config(kind, 24, 24 if kind == "identity" else 40)
    graphdef, state = abstract(lambda rngs: Projector(config, rngs=rngs, dtype=jnp.float32))
    indices, filled, names = layer_indices(config), [], set()
    for path, leaf in nnx.to_flat_state(state):
        module, i, parameter = path
        place = "layers" if kind == "linear" else f"layers.{getattr(indices, module)[i]}"
        names.add(f"param/{place}.{parameter}")
        filled.append((path, leaf.replace(jnp.asarray(data[f"param/{place}.{parameter}"]))))
    assert names == {name for name in data.files if name.startswith("param/")}
    return graphdef, nnx.from_flat_state(filled)


@jax.jit(static_argnames="graphdef")
def merge_and_project(graphdef, state, features):
    projector = nnx.merge(graphdef, state)
    return projector(projector.merge(features))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_at_every_size(kind, golden):
    data = np.load(golden / "vila" / "modules" / f"projector_{kind}.npz")
    graphdef, state = recorded(kind, data)
    sizes = [name.removeprefix("in_") for name in data.files if name.startswith("in_")]
    assert len(sizes) == (5 if "downsample" in kind else 2)
    for size in sizes:
        close(merge_and_project(graphdef, state, data[f"in_{size}"]), data[f"out_{size}"], atol=2e-5)


def test_before_nvila_the_tokens_ran_down_the_columns(golden):
    """The same numbers in another order, which is the host's affair."""
    data = np.load(golden / "vila" / "modules" / "projector_mlp_downsample__vila15_branch.npz")
    graphdef, state = recorded("mlp_downsample", data)
    for side in range(3, 8):
        ours = np.asarray(merge_and_project(graphdef, state, data[f"in_{side}x{side}"]))
        cells = -(-side // 2)
        by_column = np.arange(cells * cells).reshape(cells, cells).T.ravel()
        close(ours[:, by_column], data[f"out_{side}x{side}"], atol=2e-5)


@pytest.mark.parametrize("side", range(3, 10))
def test_merge(side, golden):
    data = np.load(golden / "vila" / "modules" / "projector_token_reorder.npz")
    features = jnp.asarray(data[f"in_{side}"])
    for window, name in ((2, "mlp_downsample_main"), (2, "2x2_fix"), (3, "3x3_fix")):
        projector = Projector(ProjectorConfig((2 * window**2,), window), rngs=nnx.Rngs(0), dtype=jnp.float32)
        merged = data[f"out_{name}_{side}"]
        np.testing.assert_array_equal(projector.merge(features), merged)
        np.testing.assert_array_equal(pool_windows(features[..., 1], window), merged[..., 1::2].sum(-1))


def test_merge_needs_square_tiles():
    projector = Projector(ProjectorConfig((8,), window=2), rngs=nnx.Rngs(0), dtype=jnp.float32)
    with pytest.raises(ValueError, match="17 patches of a tile are no square"):
        projector.merge(jnp.zeros((1, 17, 2)))


@pytest.mark.parametrize("kind", ["mlp0x_gelu", "mlpx_gelu", "mlp_downsample_4x4", "MLP_downsample", "qformer", ""])
def test_unknown_kind(kind):
    with pytest.raises(ConfigError, match=rf"unknown projector '{kind}'.*Supported: identity, linear.*3x3_s2_new"):
        projector_config(kind, 24, 40)


def test_identity_between_different_widths():
    with pytest.raises(ConfigError, match="features 24 wide, but the language model is 40 wide"):
        projector_config("identity", 24, 40)
