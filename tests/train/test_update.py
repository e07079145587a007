"""Groups, low-rank additions, steps: what is trained changes, the rest costs nothing, and bad steps do no harm."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.published import LLAVA_15_7B
from tests.train.products import product_flops
from train import lora
from train.data.labels import IGNORED
from train.objective import answer_sums
from train.update import Rules, initial_state, update
from train.weights import Structure, group_of, split
from vila_jax.bench import flops
from vila_jax.errors import ConfigError
from vila_jax.hf.config import parse_config
from vila_jax.nn.params import abstract
from vila_jax.nn.stacked import Execution
from vila_jax.nn.vlm import VLM

TINY = {
    "vision_config": {
        **LLAVA_15_7B["vision_config"],
        **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2},
        **{"image_size": 28, "projection_dim": 16},
    },
    "text_config": {
        **LLAVA_15_7B["text_config"],
        **{"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "vocab_size": 50},
    },
}


def tiny_config(tower_layers=3):
    tower = {**TINY["vision_config"], "num_hidden_layers": tower_layers}
    return parse_config(LLAVA_15_7B | TINY | {"image_token_index": 49, "vision_config": tower}).vlm


def tiny(tower_layers=3):
    return VLM(tiny_config(tower_layers), rngs=nnx.Rngs(0))


def batch(parts=1, rows=2, length=24, seed=0):
    """`parts` batches of packed rows with a picture each."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 50, (parts, rows, length)).astype(np.int32)
    targets[rng.random(targets.shape) < 0.5] = IGNORED
    source = np.full((parts, rows, length), -1, np.int32)
    source[:, :, 1:5] = np.arange(4)
    return {
        "token_ids": rng.integers(0, 50, (parts, rows, length)).astype(np.int32),
        "targets": targets,
        "source": source,
        "segments": np.ones((parts, rows, length), np.int32),
        "positions": np.broadcast_to(np.arange(length, dtype=np.int32), (parts, rows, length)).copy(),
        "pixels": rng.standard_normal((parts, rows, 1, 3, 28, 28)).astype(np.float32),
    }


def objective_of(structure):
    return lambda trained, frozen, part: answer_sums(structure.model(trained | frozen), part, chunk=16)


def one_step(structure, optimizer, rules=None):
    rules = rules or Rules()

    @jax.jit
    def step(state, frozen, given):
        return update(state, frozen, given, objective=objective_of(structure), optimizer=optimizer, rules=rules)

    return step


@pytest.mark.parametrize("trained", [("projector",), ("projector", "decoder"), ("tower", "projector", "decoder")])
def test_only_what_is_trained_changes(trained):
    structure, weights = Structure.of(tiny())
    chosen, frozen = split(weights, trained)
    assert {group_of(name) for name in chosen} == set(trained) and not set(chosen) & set(frozen)
    optimizer = optax.adam(1e-2)
    state, metrics = one_step(structure, optimizer)(initial_state(chosen, optimizer, Rules()), frozen, batch())
    changed = {name for name in chosen if np.any(state.trained[name] != chosen[name])}
    assert {group_of(name) for name in changed} == set(trained) and len(changed) > 0.8 * len(chosen)
    assert {name.removeprefix("grad_norm/") for name in metrics if "/" in name} == set(trained)


def test_parts_of_a_batch_are_one_batch():
    structure, weights = Structure.of(tiny())
    chosen, frozen = split(weights, ("projector", "decoder"))
    parts = batch(parts=3, rows=1)
    whole = {name: x.reshape(1, 3, *x.shape[2:]) for name, x in parts.items()}
    optimizer = optax.sgd(0.1)
    step = one_step(structure, optimizer)
    (a, said_a), (b, said_b) = (step(initial_state(chosen, optimizer, Rules()), frozen, x) for x in (parts, whole))
    np.testing.assert_allclose(said_a["loss"], said_b["loss"], rtol=1e-5)
    assert said_a["targets"] == said_b["targets"]
    for name in chosen:
        np.testing.assert_allclose(a.trained[name], b.trained[name], atol=1e-6)


def test_a_bad_step_changes_nothing():
    structure, weights = Structure.of(tiny())
    chosen, frozen = split(weights, ("projector",))
    optimizer, rules = optax.adam(1e-2), Rules(spike=2.0, average=0.9)
    step = one_step(structure, optimizer, rules)
    first, _ = step(initial_state(chosen, optimizer, rules), frozen, batch())
    broken = batch(seed=1)
    broken["pixels"][0, 0] = np.nan
    empty = batch(seed=2)
    empty["targets"][:] = IGNORED
    spike = first._replace(loss=jnp.float32(0.01))
    for state, given in (first, broken), (first, empty), (spike, batch(seed=3)):
        after, said = step(state, frozen, given)
        assert said["skipped"] == 1 and said["skipped_in_a_row"] == 1 and after.step == 2
        for old, new in zip(*map(jax.tree.leaves, ((state[:3]), (after[:3]))), strict=True):
            np.testing.assert_array_equal(old, new)
        again, said = step(after._replace(loss=jnp.float32(5.0)), frozen, batch(seed=4))
        assert said["skipped"] == 1 and said["skipped_in_a_row"] == 0 and again.step == 3


def test_the_average_follows_the_weights():
    structure, weights = Structure.of(tiny())
    chosen, frozen = split(weights, ("projector",))
    optimizer, rules = optax.sgd(0.5), Rules(average=0.75)
    state, _ = one_step(structure, optimizer, rules)(initial_state(chosen, optimizer, rules), frozen, batch())
    for name, start in chosen.items():
        np.testing.assert_allclose(state.average[name], 0.75 * start + 0.25 * state.trained[name], rtol=1e-6)


def test_low_rank_additions():
    model = tiny()
    structure, weights = Structure.of(model)
    part = jax.tree.map(lambda x: jnp.asarray(x[0]), batch())
    before = answer_sums(model, part).loss
    rule = lora.Lora(rank=3, alpha=6, groups=("decoder", "tower"))
    lora.add(model, rule, rngs=nnx.Rngs(1))
    np.testing.assert_allclose(answer_sums(model, part).loss, before, rtol=1e-6)
    plain, (structure, both) = structure, Structure.of(model)
    chosen, frozen = split(both, ("projector", "decoder", "tower"), ("decoder", "tower"))
    assert set(frozen) == {n for n in weights if group_of(n) != "projector"}
    assert len([n for n in chosen if ".lora." in n]) == 2 * (7 * 2 + 6 * 2)  # all linear layers of the blocks built
    optimizer = optax.sgd(0.5)
    state = initial_state(chosen, optimizer, Rules())
    for seed in range(3):
        state, _ = one_step(structure, optimizer)(state, frozen, batch(seed=seed))
    trained = structure.model(state.trained | frozen)
    expected = answer_sums(trained, part).loss
    assert abs(float(expected - before)) > 1e-3
    merged = lora.merged(state.trained | frozen, rule)
    assert set(merged) == {n.replace("lora.down", "weight") for n in chosen if n.endswith(".lora.down")}
    without = {name: value for name, value in (state.trained | frozen | merged).items() if name in weights}
    np.testing.assert_allclose(answer_sums(plain.model(without), part).loss, expected, rtol=1e-5)
    with pytest.raises(ConfigError, match="no low-rank"):
        lora.add(tiny(), lora.Lora(groups=("projector",)), rngs=nnx.Rngs(0))


def test_unknown_and_empty_groups():
    _, weights = Structure.of(tiny())
    with pytest.raises(ConfigError, match="unknown group 'llm'"):
        split(weights, ("llm",))
    with pytest.raises(ConfigError, match="nothing is trained"):
        split(weights, ())


# What a step computes, of a model of the widths of LLaVA-1.5-7B with two blocks in each part

LAYERS, LENGTH = 2, 640
WIDE = {
    "vision_config": {**LLAVA_15_7B["vision_config"], "num_hidden_layers": LAYERS + 1},
    "text_config": {**LLAVA_15_7B["text_config"], "num_hidden_layers": LAYERS},
}


def abstract_step(trained, rank=0, **how):
    """Loss and gradient of a stage of 7B width, its abstract arguments, and the model's config."""
    config = parse_config(LLAVA_15_7B | WIDE).vlm

    def build(rngs):
        model = VLM(config, rngs=rngs)
        if rank:
            lora.add(model, lora.Lora(rank=rank), rngs=rngs)
        return model

    graphdef, state = abstract(build)
    structure, weights = Structure.of(nnx.merge(graphdef, state), **how)
    chosen, frozen = split(weights, trained, ("decoder",) if rank else ())
    row = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)
    given = dict.fromkeys(("token_ids", "targets", "source", "segments", "positions"), row)
    given["pixels"] = jax.ShapeDtypeStruct((1, 1, 3, 336, 336), jnp.float32)

    def loss(chosen, frozen, given):
        return answer_sums(structure.model(chosen | frozen), given, chunk=LENGTH).loss

    return jax.jit(jax.value_and_grad(loss)), (chosen, frozen, given), config


def expected(config, tower, projector, layers, head, attention):
    """FLOPs where the products of each part are done so many times."""
    decoder = config.decoder
    tower_forward = flops.tower_flops(config)
    by_projector = [2 * 576 * i * o for i, o in itertools.pairwise(config.projector.widths)]
    pairs = 4 * decoder.num_heads * decoder.head_dim * LENGTH**2 * decoder.num_layers  # the full square: no flash here
    return (
        tower * tower_forward
        + sum(times * own for times, own in zip(projector, by_projector, strict=True))
        + layers * 2 * LENGTH * flops.layer_weights(decoder)
        + head * 2 * LENGTH * decoder.hidden_size * decoder.vocab_size
        + attention * pairs
    )


STAGES = pytest.mark.parametrize(
    ("trained", "rank", "times"),
    [
        # align: forward through all, activation gradients through the decoder: 2 N and 4 N
        (("projector",), 0, dict(tower=1, projector=(2, 3), layers=2, head=3, attention=3)),
        # pre-training: 6 N of the decoder
        (("projector", "decoder"), 0, dict(tower=1, projector=(2, 3), layers=3, head=4, attention=3)),
        (("tower", "projector", "decoder"), 0, dict(tower=3, projector=(3, 3), layers=3, head=4, attention=3)),
        # low rank: the frozen weights cost activations alone
        (("projector", "decoder"), 8, dict(tower=1, projector=(2, 3), layers=2, head=3, attention=3)),
    ],
)


@STAGES
def test_gradients_are_built_for_what_is_trained_alone(trained, rank, times):
    """2 N, 4 N, 6 N; the head is computed twice forward, since its scores are not kept."""
    step, arguments, config = abstract_step(trained, rank)
    got = step.lower(*arguments).cost_analysis()["flops"]
    assert got == pytest.approx(expected(config, **times), rel=0.03)


@STAGES
@pytest.mark.parametrize("remat", ["none", "minimal", "full"])
def test_so_they_are_in_stacked_blocks(trained, rank, times, remat):
    """XLA counts the body of a scan once, so that the products are counted here. What is not kept is done once more:
    attention with `minimal`; with `full` all products of a block but its last, whose result nothing reads."""
    execution = Execution(remat)
    step, arguments, config = abstract_step(trained, rank, stacked=True, tower=execution, decoder=execution)
    times, last = dict(times), 0
    if remat != "none":
        times["attention"] += 1
    if remat == "full":
        times["layers"] += 1
        last = 2 * LENGTH * config.decoder.hidden_size * config.decoder.intermediate_size * config.decoder.num_layers
        if "tower" in trained:
            times["tower"] += 1
            vision = config.vision
            last += 2 * vision.num_positions * vision.hidden_size * vision.intermediate_size * config.vision_depth
    got = product_flops(jax.make_jaxpr(step)(*arguments).jaxpr)
    assert got == pytest.approx(expected(config, **times) - last, rel=0.03)
