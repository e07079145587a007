"""The declaration of weights: one tree, abstract or real, with a name for every axis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vila_jax.nn.config import DecoderConfig, VisionConfig, VLMConfig
from vila_jax.nn.params import abstract, dotted, fan_in, logical_axes, normal, ones, weight
from vila_jax.nn.projector_types import projector_config
from vila_jax.nn.vlm import VLM


def config(kind: str = "clip", width: int = 6, **decoder) -> VLMConfig:
    intern = kind == "intern"
    return VLMConfig(
        vision=VisionConfig(kind, 6, 12, 3, 2, 15, 5, "gelu", 1e-5, qk_norm=intern, qkv_bias=not intern),
        projector=projector_config("mlp_downsample_3x3_fix" if intern else "mlp2x_gelu", 6, width),
        decoder=DecoderConfig(31, width, 12, 2, 4, 2, 3, 1e-5, 64, **decoder),
        feature_layers=(2,),
        has_newline=True,
    )


CONFIGS = {
    "clip": config(),
    "siglip": config("siglip"),
    "intern, merging projector": config("intern"),
    "biases, tied": config(qkv_bias=True, out_bias=True, mlp_bias=True, tie_embeddings=True),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_abstract_tree_is_the_real_one(name):
    graphdef, state = abstract(lambda rngs: VLM(CONFIGS[name], rngs=rngs, dtype=jnp.bfloat16))
    real_graphdef, real = nnx.split(VLM(CONFIGS[name], rngs=nnx.Rngs(0), dtype=jnp.bfloat16))
    shapes, real_shapes = (
        {dotted(path): (leaf.shape, leaf.dtype) for path, leaf in nnx.to_flat_state(tree)} for tree in (state, real)
    )
    assert shapes == real_shapes
    assert {dtype for _, dtype in shapes.values()} == {jnp.dtype(jnp.bfloat16)}
    assert graphdef == real_graphdef, "so that weights loaded into the one run in programs compiled for the other"


def test_abstract_tree_allocates_nothing():
    before = {id(array) for array in jax.live_arrays()}
    _, state = abstract(lambda rngs: VLM(config(width=1 << 40), rngs=rngs))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) > 1 << 80, "more than any machine holds"
    assert {id(array) for array in jax.live_arrays()} <= before


@pytest.mark.parametrize("name", CONFIGS)
def test_every_axis_has_a_name(name):
    _, state = abstract(lambda rngs: VLM(CONFIGS[name], rngs=rngs))
    axes = logical_axes(state)
    shapes = {dotted(path): leaf.shape for path, leaf in nnx.to_flat_state(state)}
    assert axes.keys() == shapes.keys()
    for path, shape in shapes.items():
        assert len(axes[path]) == len(shape), path
        named = [axis for axis in axes[path] if axis is not None]
        assert named and len(set(named)) == len(named), path


def test_axes_and_shape_must_agree():
    with pytest.raises(ValueError, match=r"2 axes of shape \(3, 4\), but 1 names \('embed',\)"):
        weight((3, 4), ("embed",), ones, rngs=nnx.Rngs(0))


def test_initialisers():
    """LeCun scaling by the input of a kernel, whose first axis is the output; no two weights alike."""
    rngs = nnx.Rngs(0)
    for shape in ((400, 25), (100, 3, 5, 5)):
        one, two = (weight(shape, (None,) * len(shape), fan_in(shape), rngs=rngs)[...] for _ in range(2))
        inputs = np.prod(shape[1:])
        np.testing.assert_allclose(np.std(one), inputs**-0.5, rtol=0.05)
        assert np.abs(one - two).max() > 0
    np.testing.assert_allclose(np.std(weight((400, 25), (None, None), normal(0.02), rngs=rngs)[...]), 0.02, rtol=0.05)
