"""InternViT against vectors recorded from the reference."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.nn.oracle import close
from vila_jax.budgets.tome import ToMe
from vila_jax.budgets.tower import TowerReduction
from vila_jax.budgets.tower_norm import TowerNorm
from vila_jax.nn.config import VisionConfig
from vila_jax.nn.params import abstract, dotted
from vila_jax.nn.positions import resize_positions_bicubic
from vila_jax.nn.vit import VisionTower

CONFIG = VisionConfig(
    kind="intern",
    hidden_size=32,
    intermediate_size=64,
    num_layers=3,
    num_heads=4,
    image_size=56,
    patch_size=14,
    hidden_act="gelu",
    norm_eps=1e-6,
    qk_norm=True,
    qkv_bias=False,
)
NAMES = {  # ours: theirs
    "layers.": "encoder.layers.",
    "attn.out.": "attn.proj.",
    "fc1.": "mlp.fc1.",
    "fc2.": "mlp.fc2.",
    "scale1": "ls1",
    "scale2": "ls2",
    "patch_weight": "patch_embedding.weight",
    "patch_bias": "patch_embedding.bias",
    "class_token": "class_embedding",
    "embeddings.position": "embeddings.position_embedding",
}


@pytest.fixture(scope="module")
def data(golden):
    return np.load(golden / "vila" / "modules" / "intern_vit.npz")


def tower(data, image_size: int = 56) -> tuple[nnx.GraphDef, nnx.State]:
    config = dataclasses.replace(CONFIG, image_size=image_size)
    graphdef, state = abstract(lambda rngs: VisionTower(config, 3, rngs=rngs, dtype=jnp.float32))
    filled, used = [], set()
    for path, leaf in nnx.to_flat_state(state):
        name = dotted(path)
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        tensor = data[f"param/{name}"]
        if name.endswith("position_embedding"):
            tensor = resize_positions_bicubic(tensor[0], config.side)
        used.add(f"param/{name}")
        filled.append((path, leaf.replace(jnp.asarray(tensor.reshape(leaf.shape)))))
    assert used == {name for name in data.files if name.startswith("param/")}
    return graphdef, nnx.from_flat_state(filled)


@jax.jit(static_argnames=("graphdef", "wanted"))
def encode(graphdef, state, pixels, wanted=()):
    return nnx.merge(graphdef, state)(pixels, wanted)


def test_states_and_intermediates(data):
    wanted = ("cls_attention/0", "received_attention/0", "keys/0")
    states, found = encode(*tower(data), data["input"], wanted)
    assert len(states) == 4
    for i, state in enumerate(states):
        close(state, data[f"hidden_states_{i}"], atol=2e-5)
    for layer in (-1, -2):
        close(states[layer][:, 1:], data[f"features_layer{layer}_patch"], atol=2e-5)

    keys = recorded_keys(data)
    close(found["keys/0"], keys[:, 1:], atol=2e-5)
    queries = data["layer0_q_after_norm"].reshape(keys.shape).astype(np.float64)
    weights = np.exp(np.einsum("rtnh,rsnh->rnts", queries, keys) / np.sqrt(keys.shape[-1]))
    weights /= weights.sum(-1, keepdims=True)
    close(found["cls_attention/0"], weights[:, :, 0, 1:].astype(np.float32), atol=1e-6)
    close(found["received_attention/0"], weights.mean(2)[:, :, 1:].astype(np.float32), atol=1e-6)


def recorded_keys(data) -> np.ndarray:
    """Normalised keys of block 0, `[R, P, N, H]`, worked out from the recorded states and weights."""

    def rms_norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * data[f"param/encoder.layers.0.{name}.weight"]

    into = data["param/encoder.layers.0.attn.qkv.weight"][32:64]
    keys = rms_norm(rms_norm(data["hidden_states_0"], "norm1") @ into.T, "attn.k_norm")
    return keys.reshape(2, 17, 4, 8)


def test_inside_a_block(data):
    attention = nnx.merge(*tower(data)).layers[0]
    normed = attention.norm1(jnp.asarray(data["hidden_states_0"]))
    close(attention.attn(normed, ())[0], data["layer0_attn_out"], atol=2e-5)
    queries = jnp.asarray(data["layer0_q_before_norm"])
    close(attention.attn.q_norm(queries), data["layer0_q_after_norm"], atol=2e-5)


def test_another_size(data):
    """Positions resized when the weights are loaded."""
    states, _ = encode(*tower(data, 84), data["input_84"])
    close(states[-1][:, 1:], data["features_84_layer-1_patch"], atol=2e-5)


@pytest.mark.parametrize("rule", [ToMe(), TowerNorm()], ids=lambda rule: rule.name)
def test_fewer_tokens(data, rule):
    """With nothing to take away it is the tower as recorded; of what is left every token stands for itself."""
    graphdef, state = tower(data)
    pixels, shown = jnp.asarray(data["input"]), jnp.ones((2, 16), bool)
    reduced = jax.jit(lambda *args: nnx.merge(graphdef, state).reduced(*args), static_argnums=1)
    everything, stand_in = reduced(pixels, TowerReduction(rule, (16, 16, 16)), shown)
    close(everything[-1], data["hidden_states_3"], atol=2e-5)
    assert (stand_in == jnp.arange(16)[None]).all()
    states, stand_in = reduced(pixels, TowerReduction(rule, rule.schedule(16, 5, 3)), shown)
    assert states[-1].shape == everything[-1].shape
    for row in np.asarray(stand_in):
        left = set(row.tolist()) - {-1}
        assert len(left) == 5 and all(row[i] == i for i in left)
