"""The mesh over 8 virtual devices, and where the rules put weights on it."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from vila_jax.dist.mesh import make_mesh, parse_axes
from vila_jax.dist.rules import ShardingRules, sharding_for
from vila_jax.errors import ConfigError
from vila_jax.nn.config import DecoderConfig, ProjectorConfig, VisionConfig, VLMConfig
from vila_jax.nn.params import abstract, logical_axes
from vila_jax.nn.vlm import VLM


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ({"tensor": 2, "fsdp": 4}, {"data": 1, "fsdp": 4, "tensor": 2, "sequence": 1}),
        ({"data": -1}, {"data": 8, "fsdp": 1, "tensor": 1, "sequence": 1}),
        ({"sequence": 2, "fsdp": -1, "tensor": 2}, {"data": 1, "fsdp": 2, "tensor": 2, "sequence": 2}),
    ],
)
def test_mesh_has_all_axes(axes, shape):
    mesh = make_mesh(axes)
    assert dict(mesh.shape) == shape
    assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"model": 8}, "unknown mesh axis 'model'.*data, fsdp, tensor, sequence"),
        ({"data": 4}, "data=4 cannot be laid over 8 devices"),
        ({"data": 16}, "data=16 cannot be laid"),
        ({"data": -1, "fsdp": -1}, "cannot be laid"),
        ({"data": -1, "fsdp": 3}, "cannot be laid"),
        ({"data": 0, "fsdp": -1}, "cannot be laid"),
        ({"data": -2, "fsdp": -4}, "cannot be laid"),
        ({}, "no axes cannot be laid over 8"),
    ],
)
def test_impossible_mesh(axes, message):
    with pytest.raises(ConfigError, match=message):
        make_mesh(axes)


def test_axes_of_a_command_line():
    assert parse_axes("fsdp=4,tensor=2") == {"fsdp": 4, "tensor": 2} and parse_axes("data=-1") == {"data": -1}
    assert parse_axes("") == {}
    for text in ("fsdp", "fsdp=two", "fsdp=2,fsdp=4"):
        with pytest.raises(ConfigError, match="AXIS=SIZE"):
            parse_axes(text)


@pytest.mark.parametrize(
    ("axes", "shape", "spec"),
    [
        (("mlp", "embed"), (6, 8), P("tensor", "fsdp")),
        (("embed", "heads"), (8, 6), P("fsdp", "tensor")),
        (("vocab", "embed"), (97, 8), P(None, "fsdp")),  # 97 is odd
        (("norm",), (8,), P(None)),
        ((None, "vision_embed"), (4, 8), P(None, "fsdp")),
        (("heads", "mlp"), (4, 4), P("tensor", None)),  # one mesh axis cannot split two
        (("heads", "mlp"), (3, 4), P(None, "tensor")),
    ],
)
def test_rules(axes, shape, spec):
    sharding = sharding_for(axes, shape, make_mesh({"tensor": 2, "fsdp": 4}))
    assert sharding.spec == spec
    placed = jax.device_put(np.zeros(shape), sharding)
    parts = [{None: 1, "tensor": 2, "fsdp": 4}[name] for name in spec]
    local = tuple(n // part for n, part in zip(shape, parts, strict=True))
    assert placed.addressable_shards[0].data.shape == local


def test_every_axis_of_the_model_has_a_rule():
    vision = dict(hidden_size=8, intermediate_size=8, num_layers=1, num_heads=2, image_size=4, patch_size=2)
    config = VLMConfig(
        vision=VisionConfig(kind="clip", hidden_act="gelu", norm_eps=1e-5, **vision),
        projector=ProjectorConfig((8, 8, 8)),
        decoder=DecoderConfig(16, 8, 8, 1, 2, 2, 4, 1e-5, 32, qkv_bias=True),
        feature_layers=(1,),
        has_newline=True,
    )
    _, state = abstract(lambda rngs: VLM(config, rngs=rngs))
    mesh = make_mesh({"tensor": 2, "fsdp": 4})
    axes = logical_axes(state)
    split = set()
    for (_, leaf), names in zip(nnx.to_flat_state(state), axes.values(), strict=True):
        split |= set(sharding_for(names, leaf.get_value().shape, mesh).spec)
    assert split == {None, "fsdp", "tensor"}


def test_own_rules_and_unknown_axes():
    mesh = make_mesh({"data": 8})
    rules = ShardingRules({"embed": "data"})
    assert sharding_for(("embed",), (16,), mesh, rules).spec == P("data")
    with pytest.raises(ConfigError, match=r"no rule for the logical axis 'mlp'.*embed"):
        sharding_for(("mlp",), (16,), mesh, rules)


def test_the_readme_finds_the_mesh_where_it_says():
    import vila_jax
    from vila_jax.model import Model

    assert Model is vila_jax.Model
    assert dict(vila_jax.dist.make_mesh({"fsdp": 4, "tensor": 2}).shape)["fsdp"] == 4
