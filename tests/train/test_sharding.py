"""On a mesh a stage is what it is on one device, and nothing is where it need not be."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from tests.train.test_update import batch, tiny
from train.compile import abstract_state, make_state, make_step
from train.objective import answer_sums
from train.sharding import Placement, executions, in_parts
from train.update import Rules
from train.weights import Structure, split
from vila_jax.dist import make_mesh
from vila_jax.dist.mesh import AXES
from vila_jax.errors import ConfigError

RULES = Rules(spike=10.0, average=0.9)
STEPS = 20


def rows(seed):
    """A batch of eight packed rows, as the pipeline of one host gives it."""
    return {name: value[0] for name, value in batch(rows=8, seed=seed).items()} | {"used": np.ones((8, 2), np.int32)}


class Run:
    """A tiny model in training, on a mesh or on one device."""

    def __init__(self, axes, *, parts=1, trained=("projector", "decoder"), remat="minimal"):
        self.parts = parts
        mesh = make_mesh(axes) if axes else None
        self.structure, weights = Structure.of(tiny(), stacked=True, **executions(remat, mesh))
        chosen, self.frozen = split(weights, trained)
        self.placement = Placement.of(self.structure, weights, mesh) if mesh else None
        optimizer = optax.adamw(1e-3)
        self.step = make_step(self.objective, optimizer, RULES, chosen, self.placement)
        if self.placement:
            chosen, self.frozen = (self.placement.put(x, self.placement.flat(x)) for x in (chosen, self.frozen))
        self.state = make_state(chosen, optimizer, RULES, self.placement)

    def objective(self, trained, frozen, part):
        return answer_sums(self.structure.model(trained | frozen), part, chunk=64)

    def given(self, seed):
        return self.placement.put_batch(rows(seed), self.parts) if self.placement else in_parts(rows(seed), self.parts)

    def losses(self, steps):
        said = []
        for seed in range(steps):
            self.state, metrics = self.step(self.state, self.frozen, self.given(seed % 4))
            said.append(float(metrics["loss"]))
        return np.array(said)

    def program(self):
        return self.step.lower(self.state, self.frozen, self.given(0)).compile().as_text()


@pytest.fixture(scope="module")
def alone():
    run = Run(None)
    return run.losses(STEPS), run.state


@pytest.mark.parametrize(
    ("axes", "parts"),
    [({"data": 2, "fsdp": 2, "tensor": 2}, 1), ({"fsdp": 2, "tensor": 2, "sequence": 2}, 2)],
)
def test_twenty_steps_are_those_of_one_device(alone, axes, parts):
    run = Run(axes, parts=parts)
    expected, state = alone
    assert expected[-1] < 0.97 * expected[0]
    np.testing.assert_allclose(run.losses(STEPS), expected, rtol=1e-5)
    for name, value in state.trained.items():
        np.testing.assert_allclose(run.state.trained[name], value, atol=2e-4, err_msg=name)
        lies = run.state.trained[name].sharding
        assert lies.is_equivalent_to(run.placement.weights[name], value.ndim), name
    assert run.step._cache_size() == 1


def test_everything_has_its_place():
    structure, weights = Structure.of(tiny(), stacked=True)
    placement = Placement.of(structure, weights, make_mesh({"data": 2, "fsdp": 2, "tensor": 2}))
    name = "decoder.layers.*.attn.q.weight"
    assert placement.weights[name].spec == P(None, "tensor", "fsdp")
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    state = abstract_state(weights, optimizer, Rules(average=0.9), placement)
    adam = state.opt[1][0]
    for tree in (state.trained, state.average, adam.mu, adam.nu):
        assert tree[name].sharding.spec == P(None, "tensor", "fsdp")
    assert adam.count.sharding.spec == state.step.sharding.spec == P()
    factored = abstract_state(weights, optax.adafactor(1e-3, min_dim_size_to_factor=8), Rules(), placement)
    assert factored.opt[0].v_row[name].shape == (2, 24) and factored.opt[0].v_row[name].sharding.spec == P()
    given = {"token_ids": (1, 8, 6), "pixels": (1, 8, 3, 3, 4, 4), "used": (1, 8, 2)}
    given = {key: jax.ShapeDtypeStruct(shape, jnp.int32) for key, shape in given.items()}
    long = Placement.of(structure, weights, make_mesh({"fsdp": 4, "sequence": 2}))
    specs = {key: sharding.spec for key, sharding in long.batch(given).items()}
    rows = ("data", "fsdp")
    assert specs == {"token_ids": P(None, rows, "sequence"), "pixels": P(None, rows), "used": P(None, rows)}
    assert (long.row_shares, long.token_shares) == (4, 8)


def test_keys_and_values_alone_are_gathered_along_a_sequence():
    """There are 2 heads of keys and 4 of queries, of width 6, so that the states of a row are twice its keys."""
    gathered = shapes_gathered(Run({"sequence": 8}).program())
    keys = (8, 2, 24, 6)
    assert keys in gathered
    assert max(map(np.prod, gathered)) == np.prod(keys)


def test_visual_tokens_stay_with_their_rows():
    """Rows over 8 devices: no gradient of the tower is built and no table of visual tokens sent around."""
    program = Run({"data": 8}, trained=("projector",)).program()
    assert not shapes_gathered(program)
    assert "all-reduce" in program


def shapes_gathered(program):
    """Shapes of what the all-gathers of a program make."""
    made = re.findall(r"= \(?(.*?)\)? all-gather(?:-start)?\(", program)
    return [tuple(map(int, s.split(","))) for one in made for s in re.findall(r"\w+\[([\d,]+)\]", one)]


def test_rows_that_cannot_be_shared_out():
    structure, weights = Structure.of(tiny(), stacked=True)
    placement = Placement.of(structure, weights, make_mesh({"data": 8}))
    assert placement.host_share() == (0, 1)
    with pytest.raises(ConfigError, match=r"rows: 4 rows \(in each part of a step\).*among 8 groups.*multiple of 8"):
        placement.put_batch(rows(0), parts=2)
    with pytest.raises(ConfigError, match=r"rows: 8 rows of this host cannot be split into 3"):
        placement.put_batch(rows(0), parts=3)


class Device:
    def __init__(self, process_index):
        self.process_index = process_index


@pytest.mark.parametrize(
    ("shape", "per_host", "shares"),
    [
        ((2, 2, 2, 1), 2, [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ((2, 2, 2, 1), 4, [(0, 2), (1, 2)]),
        ((2, 1, 2, 2), 2, [(0, 2), (0, 2), (1, 2), (1, 2)]),  # two hosts read the same rows
        ((1, 3, 2, 1), 3, None),
    ],
)
def test_which_rows_a_host_reads(shape, per_host, shares):
    count = int(np.prod(shape))
    devices = np.array([Device(i // per_host) for i in range(count)], object).reshape(shape)
    mesh = type("Mesh", (), {"devices": devices, "shape": dict(zip(AXES, shape, strict=True))})
    placement = Placement(mesh, {})
    if shares is None:
        with pytest.raises(ConfigError, match="not a whole block of the mesh"):
            placement.host_share(0)
    else:
        assert [placement.host_share(host) for host in range(count // per_host)] == shares
