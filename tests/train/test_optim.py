"""Optimizers: equal to those of PyTorch and optax, blind to whether blocks are stacked, a rate for each group."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

from train.optim import decays, learning_rates, make_optimizer, share_of_peak
from train.recipe import Optimizer

RULES = ("adamw", "muon", "adafactor")
STEPS = 20
RATES = {"tower": 1e-3, "projector": 3e-2, "decoder": 1e-2}
SHAPES = {
    "vision_tower.layers.0.attn.q.weight": (6, 4),
    "vision_tower.layers.0.attn.q.bias": (6,),
    "vision_tower.embeddings.class_token": (4,),
    "vision_tower.embeddings.patch_weight": (4, 3, 2, 2),
    "projector.layers.0.weight": (8, 6),
    "projector.layers.0.bias": (8,),
    "newline": (8,),
    "decoder.embedding": (10, 8),
    "decoder.head": (10, 8),
    "decoder.norm.weight": (8,),
    "decoder.layers.0.norm1.weight": (8,),
    "decoder.layers.0.attn.q.weight": (8, 8),
    "decoder.layers.0.attn.q.lora.down": (2, 8),
    "decoder.layers.0.mlp.up.weight": (12, 8),
}
MATRICES = {name for name, shape in SHAPES.items() if len(shape) > 1}


def drawn(shapes, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return {name: (scale * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


def trained(rule, weights, gradients):
    """Weights after an update with each of the gradients."""
    state = rule.init(weights)
    update = jax.jit(rule.update)
    for own in gradients:
        updates, state = update(own, state, weights)
        weights = optax.apply_updates(weights, updates)
    return weights


def assert_near(got, expected, tolerance=1e-6):
    assert got.keys() == expected.keys()
    for name, value in got.items():
        np.testing.assert_allclose(value, expected[name], tolerance, tolerance, err_msg=name)


def of_torch(optimizer, weights, gradients):
    """The same by PyTorch, with a parameter group for each learning rate, with decay and without."""
    own = {name: torch.nn.Parameter(torch.from_numpy(w.copy())) for name, w in weights.items()}
    groups = []
    for group, heads in {"tower": "vision_tower", "projector": ("projector", "newline"), "decoder": "decoder"}.items():
        names = [name for name in own if name.startswith(heads)]
        for decayed in (True, False):
            params = [own[name] for name in names if (name in MATRICES) is decayed]
            decay = optimizer.weight_decay if decayed else 0.0
            groups.append({"params": params, "lr": RATES[group], "weight_decay": decay})
    rule = torch.optim.AdamW(groups, betas=(optimizer.b1, optimizer.b2), eps=1e-8)
    warmup = math.ceil(optimizer.warmup * STEPS)
    schedule = transformers.get_cosine_schedule_with_warmup(rule, warmup, STEPS)
    for given in gradients:
        for name, p in own.items():
            p.grad = torch.from_numpy(given[name].copy())
        if optimizer.clip is not None:
            torch.nn.utils.clip_grad_norm_(own.values(), optimizer.clip)
        rule.step()
        schedule.step()
    return {name: p.detach().numpy() for name, p in own.items()}


@pytest.mark.parametrize("clip", [None, 5.0])
def test_adamw_is_that_of_pytorch(clip):
    optimizer = Optimizer(b1=0.8, b2=0.95, weight_decay=0.3, clip=clip, warmup=0.11)
    weights, gradients = drawn(SHAPES), [drawn(SHAPES, seed, 1 + seed % 3) for seed in range(STEPS)]
    got = trained(make_optimizer(optimizer, RATES, STEPS), weights, gradients)
    assert_near(got, of_torch(optimizer, weights, gradients))


def test_adafactor_is_that_of_transformers():
    shapes = {"decoder.layers.0.attn.q.weight": (128, 130), "decoder.norm.weight": (9,)}
    weights, gradients = drawn(shapes), [drawn(shapes, seed, 10.0**-seed) for seed in range(5)]
    optimizer = Optimizer("adafactor", warmup=0.0, decay="none")
    own = {name: torch.nn.Parameter(torch.from_numpy(w.copy())) for name, w in weights.items()}
    settings = {"scale_parameter": False, "relative_step": False, "warmup_init": False, "eps": (1e-30, 1e-3)}
    rule = transformers.Adafactor(own.values(), lr=RATES["decoder"], **settings)
    for given in gradients:
        for name, p in own.items():
            p.grad = torch.from_numpy(given[name].copy())
        rule.step()
    got = trained(make_optimizer(optimizer, RATES, STEPS), weights, gradients)
    assert_near(got, {name: p.detach().numpy() for name, p in own.items()})


def test_muon_has_the_matrices_of_blocks_and_projector():
    optimizer = Optimizer("muon", b1=0.8, weight_decay=0.1, warmup=0.0, decay="none")
    weights, gradients = drawn(SHAPES), [drawn(SHAPES, seed) for seed in range(3)]
    rates = dict.fromkeys(RATES, 0.01)
    got = trained(make_optimizer(optimizer, rates, STEPS), weights, gradients)
    inside = {name for name in MATRICES if ".layers." in name and name.endswith(".weight")}
    assert len(inside) == 4
    numbers = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=0)
    muon = optax.contrib.muon(
        0.01,
        weight_decay=0.1,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=lambda p: dict.fromkeys(p, numbers),
    )
    adamw = optax.adamw(0.01, b1=0.8, weight_decay=0.1, mask=lambda p: {name: name in MATRICES for name in p})
    for names, rule in (inside, muon), (set(SHAPES) - inside, adamw):
        chosen, *given = ({n: x[n] for n in sorted(names)} for x in (weights, *gradients))
        assert_near({n: got[n] for n in chosen}, trained(rule, chosen, given))


def test_muon_orthogonalises_and_keeps_the_size_of_adam_steps():
    """All singular values of a step are near each other, whatever those of the gradient; its entries measure 0.2 lr."""
    name, optimizer = "decoder.layers.0.mlp.up.weight", Optimizer("muon", warmup=0.0, decay="none")
    weights = {name: np.zeros(SHAPES[name], np.float32)}
    step = trained(make_optimizer(optimizer, RATES, STEPS), weights, [drawn({name: SHAPES[name]})])[name]
    singular = np.linalg.svd(np.asarray(step), compute_uv=False)
    assert singular.max() / singular.min() < 2.0
    assert np.sqrt(np.mean(np.square(step))) == pytest.approx(0.2 * RATES["decoder"], rel=0.25)


STACKED = {
    "decoder.layers.*.attn.q.weight": (2, 128, 129),
    "decoder.layers.*.attn.q.lora.down": (3, 2, 129),
    "decoder.layers.*.norm1.weight": (130, 131),  # long enough for Adafactor to take its blocks for rows
    "vision_tower.layers.*.attn.q.bias": (3, 5),
}


def unstacked(weights, blocks=3):
    """An array for each of the first blocks."""
    apart = {}
    for name, value in weights.items():
        if "*" in name:
            apart |= {name.replace("*", str(i)): block for i, block in enumerate(value[:blocks])}
        else:
            apart[name] = value
    return apart


@pytest.mark.parametrize("rule", RULES)
def test_stacked_blocks_are_moved_like_blocks_apart(rule):
    shapes = STACKED | {"decoder.embedding": (10, 8), "projector.layers.0.weight": (8, 6)}

    def gradient(seed):
        values = drawn(shapes, seed)
        for name, shape in STACKED.items():  # blocks whose gradients are of different sizes
            values[name] *= np.geomspace(1e-3, 1, shape[0], dtype=np.float32).reshape(-1, *[1] * (len(shape) - 1))
        return values

    weights, gradients = drawn(shapes), [gradient(seed) for seed in range(2)]
    make = make_optimizer(Optimizer(rule, weight_decay=0.2, warmup=0.0), RATES, STEPS)
    got = trained(make, weights, gradients)
    apart = trained(make, unstacked(weights), [unstacked(g) for g in gradients])
    assert_near(unstacked(got), apart, 2e-6)


def test_what_decays():
    stacked = {name.replace(".0.", ".*."): (3, *shape) for name, shape in SHAPES.items() if ".layers.0." in name}
    whole = {name: value for name, value in decays(drawn(SHAPES)).items() if value}
    assert whole.keys() == MATRICES
    of_stacks = {name for name, value in decays(drawn(stacked)).items() if value}
    assert of_stacks == {name.replace(".0.", ".*.") for name in MATRICES if ".layers.0." in name}
    assert decays({"hidden": {0: {"weight": jnp.ones((2, 2)), "bias": jnp.ones(2)}}}) == {
        "hidden": {0: {"weight": True, "bias": False}}
    }


@pytest.mark.parametrize("rule", RULES)
def test_state_lies_under_the_names_of_weights(rule):
    shapes = {"decoder.layers.*.attn.q.weight": (2, 128, 128), "decoder.layers.*.norm1.weight": (2, 8), "newline": (8,)}
    state = make_optimizer(Optimizer(rule), RATES, STEPS).init(drawn(shapes))
    leaves = jax.tree_util.tree_leaves_with_path(state)
    names = {path[-1].key for path, _ in leaves if isinstance(path[-1], jax.tree_util.DictKey)}
    assert names == set(shapes)
    held = sum(leaf.size for _, leaf in leaves)
    matrix, rest = math.prod(shapes["decoder.layers.*.attn.q.weight"]), 24
    if rule == "adafactor":
        assert held < 0.05 * matrix
    else:  # one moment for Muon's matrices, two of all else; besides, some counts and coefficients
        assert 0 <= held - ({"adamw": 2, "muon": 1}[rule] * matrix + 2 * rest) < 12
        assert all(leaf.shape == shapes[path[-1].key] for path, leaf in leaves if leaf.size > 10)


@pytest.mark.parametrize(("decay", "last"), [("cosine", 0.0), ("cosine", 0.1), ("linear", 0.0), ("none", 0.0)])
def test_schedules_are_those_of_transformers(decay, last):
    steps, warmup, optimizer = 50, 7, Optimizer(warmup=0.13, decay=decay, last=last)
    rule = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    expected = {
        "cosine": lambda: transformers.get_cosine_with_min_lr_schedule_with_warmup(
            rule, warmup, steps, min_lr_rate=last
        ),
        "linear": lambda: transformers.get_linear_schedule_with_warmup(rule, warmup, steps),
        "none": lambda: transformers.get_constant_schedule_with_warmup(rule, warmup),
    }[decay]()
    traced = jax.jit(lambda step: share_of_peak(optimizer, steps, step))(jnp.arange(steps + 1))
    for step in range(steps + 1):
        share = expected.get_last_lr()[0]
        rates = learning_rates(optimizer, RATES, steps, step)
        assert rates == pytest.approx({group: peak * share for group, peak in RATES.items()}, abs=1e-12)
        assert traced[step] == pytest.approx(share, abs=1e-6)
        rule.step()
        expected.step()


def test_without_warm_up_the_first_step_has_the_peak():
    for decay, steps in itertools.product(("cosine", "linear", "none"), (1, 10)):
        assert share_of_peak(Optimizer(warmup=0.0, decay=decay), steps, 0) == 1.0
