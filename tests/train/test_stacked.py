"""Stacked blocks under a scan, with less kept for the backward pass: the same losses and gradients, block by block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.train.test_objective import golden_batch, rows
from tests.train.test_update import batch, tiny, tiny_config
from train import lora
from train.objective import answer_sums
from train.weights import Structure, group_of, is_trained, split
from vila_jax.errors import ConfigError
from vila_jax.hf.load import load_state
from vila_jax.nn.config import DecoderConfig
from vila_jax.nn.decoder import Decoder
from vila_jax.nn.params import abstract
from vila_jax.nn.stacked import Execution, Stacked
from vila_jax.nn.vlm import VLM


def part():
    return jax.tree.map(lambda x: jnp.asarray(x[0]), batch())


def loss_and_gradients(model, given, *, trained=("tower", "projector", "decoder"), low_rank=(), stacked, remat="none"):
    """By the names of the unrolled model."""
    execution = Execution(remat)
    structure, weights = Structure.of(model, stacked=stacked, tower=execution, decoder=execution)
    chosen, frozen = split(weights, trained, low_rank)

    @jax.jit
    def step(chosen, frozen, given):
        return jax.value_and_grad(lambda chosen: mean(structure.model(chosen | frozen), given))(chosen)

    loss, grads = step(chosen, frozen, given)
    return loss, structure.unstack(grads)


def mean(model, given):
    sums = answer_sums(model, given, chunk=16)
    return sums.loss / sums.targets


def assert_equal(got, expected):
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
    assert set(got[1]) == set(expected[1])
    for name, value in expected[1].items():
        np.testing.assert_allclose(got[1][name], value, atol=1e-6, rtol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def unrolled():
    return loss_and_gradients(tiny(), part(), stacked=False)


@pytest.mark.parametrize(
    ("stacked", "remat"),
    [(True, "none"), (True, "minimal"), (True, "full"), (True, "offload"), (False, "minimal"), (False, "full")],
)
def test_every_policy_gives_the_same(unrolled, stacked, remat):
    assert_equal(loss_and_gradients(tiny(), part(), stacked=stacked, remat=remat), unrolled)


def test_frozen_tower_and_low_rank_additions():
    model = tiny()
    lora.add(model, lora.Lora(rank=3, alpha=6), rngs=nnx.Rngs(1))
    for _, linear in nnx.iter_modules(model.decoder):
        if getattr(linear, "lora", None) is not None:
            linear.lora.up[...] = 0.1 * jnp.ones_like(linear.lora.up[...])
    how = dict(trained=("projector", "decoder"), low_rank=("decoder",))
    got = loss_and_gradients(model, part(), stacked=True, remat="minimal", **how)
    assert_equal(got, loss_and_gradients(model, part(), stacked=False, **how))
    assert {group_of(name) for name in got[1]} == {"projector", "decoder"}
    assert all(".lora." in name for name in got[1] if group_of(name) == "decoder")


def test_a_checkpoint_of_vila(golden):
    laid, _, _, model, shape = golden_batch(golden, "vila15_llama_siglip")
    given = rows(laid, shape, model.engine.planner.tokens_per_tile, "apart")
    vlm = nnx.merge(*load_state(model.checkpoint, dtype=jnp.float32))
    got = loss_and_gradients(vlm, given, stacked=True, remat="full")
    assert_equal(got, loss_and_gradients(vlm, given, stacked=False))


def test_names_and_shapes():
    structure, weights = Structure.of(tiny(), stacked=True)
    name = "decoder.layers.*.attn.q.weight"
    assert weights[name].shape == (2, 24, 24) and structure.axes[name] == (None, "heads", "embed")
    assert structure.layers[name] == 2 and "projector.layers.0.weight" in weights
    assert group_of(name) == "decoder" and is_trained(name, ("decoder",)) and not is_trained(name, ("tower",))
    assert is_trained("decoder.layers.*.attn.q.lora.up", ("decoder",), ("decoder",))
    assert not is_trained(name, ("decoder",), ("decoder",))


@pytest.mark.parametrize("kind", [jnp.asarray, np.asarray])
def test_stacking_is_undone_bit_for_bit(kind):
    _, unrolled = Structure.of(tiny())
    structure, weights = Structure.of(tiny(), stacked=True)
    there = structure.stack({name: kind(value) for name, value in unrolled.items()})
    assert list(there) == list(weights)
    for name, value in weights.items():
        np.testing.assert_array_equal(there[name], value, err_msg=name)
    back = structure.unstack(there)
    assert set(back) == set(unrolled)
    for name, value in unrolled.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)
    assert set(structure.unstack(structure.stack({"decoder.norm.weight": 1}))) == {"decoder.norm.weight"}


def test_abstract_models_are_stacked_without_memory():
    graphdef, state = abstract(lambda rngs: VLM(tiny_config(), rngs=rngs))
    structure, weights = Structure.of(nnx.merge(graphdef, state), stacked=True)
    concrete, real = Structure.of(tiny(), stacked=True)
    assert structure == concrete
    assert {n: (w.shape, w.dtype) for n, w in weights.items()} == {n: (w.shape, w.dtype) for n, w in real.items()}


def test_intermediates_and_states_of_a_stacked_tower():
    pixels = jnp.asarray(batch()["pixels"][0, :, 0])
    model = tiny(tower_layers=5)
    wanted = ["keys/1", "cls_attention/3", "received_attention/0"]
    states, found = model.vision_tower(pixels, wanted)
    structure, weights = Structure.of(model, stacked=True)
    tower = structure.model(weights).vision_tower
    assert isinstance(tower.layers, Stacked) and len(tower.layers) == len(states) - 1 == 4
    for layers in (None, (4,), (2, 4), (0,), (4, 1)):
        got, same = tower(pixels, wanted, layers)
        for layer, state in zip(range(5) if layers is None else layers, got, strict=True):
            np.testing.assert_allclose(state, states[layer], atol=1e-5)
        assert set(same) == set(found)
        for name, value in found.items():
            np.testing.assert_allclose(same[name], value, atol=1e-5, err_msg=name)
    loops = str(jax.make_jaxpr(lambda pixels: tower(pixels, (), (4,))[0])(pixels)).count(" scan[")
    assert loops == 1  # whose last state is all that is held


def windowed(windows):
    config = DecoderConfig(16, 8, 12, len(windows), 2, 2, 4, 1e-5, 32, sliding_windows=windows)
    return Decoder(config, rngs=nnx.Rngs(0), dtype=jnp.float32)


@pytest.mark.parametrize(("windows", "loops"), [((None, None, 3, 3), 2), ((3, None, 3), 3), ((2, 2, 2), 1)])
def test_blocks_with_windows_of_their_own(windows, loops):
    """Qwen2 has full attention in its first layers and a window in those behind."""
    decoder = windowed(windows)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 9, 8)), jnp.float32)
    positions = jnp.broadcast_to(jnp.arange(9)[None], (2, 9))
    expected, _ = decoder(x, positions)
    assert np.any(expected != windowed((None,) * len(windows))(x, positions)[0])
    middle, _ = decoder.run(x, positions, range(1, len(windows)))
    blocks = decoder.layers
    decoder.layers = Stacked(blocks)
    np.testing.assert_allclose(decoder(x, positions)[0], expected, atol=1e-5)
    np.testing.assert_allclose(decoder.run(x, positions, range(1, len(windows)))[0], middle, atol=1e-5)
    assert str(jax.make_jaxpr(lambda x: decoder(x, positions)[0])(x)).count(" scan[") == loops
    for i, block in enumerate(blocks):
        assert nnx.graphdef(decoder.layers[i]) == nnx.graphdef(block)
        np.testing.assert_array_equal(decoder.layers[i].mlp.up.weight[...], block.mlp.up.weight[...])


def test_what_cannot_be_stacked():
    decoder = windowed((None, None))
    decoder.layers[1].mlp.up.weight = nnx.Param(jnp.zeros((10, 8)), logical_axes=("mlp", "embed"))
    with pytest.raises(ConfigError, match=r"compute.scan: the weights of blocks 0 and 1 differ.*False"):
        Stacked(decoder.layers)
