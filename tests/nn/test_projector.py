"""The projector against transformers' and against plain PyTorch."""

import itertools

import jax
import jax.numpy as jnp
import pytest
import torch
import transformers as hf
from flax import nnx
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from tests.nn.oracle import close, normal, randomise, with_weights_of
from vila_jax.nn.config import ProjectorConfig
from vila_jax.nn.params import abstract
from vila_jax.nn.projector import Projector


def project(graphdef: nnx.GraphDef, state: nnx.State, x) -> jax.Array:
    return jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))(state, jnp.asarray(x))


@pytest.mark.parametrize(
    ("theirs", "ours", "bias"),
    [("gelu", "gelu", True), ("gelu_pytorch_tanh", "gelu_tanh", False), ("relu", "relu", True)],
)
@pytest.mark.parametrize("feature_layers", [-2, [-2, 1, -1]])
def test_two_layers(theirs, ours, bias, feature_layers):
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(hidden_size=12),
        text_config=hf.LlamaConfig(hidden_size=20, num_attention_heads=5),
        projector_hidden_act=theirs,
        multimodal_projector_bias=bias,
        vision_feature_layer=feature_layers,
    )
    oracle = randomise(LlavaMultiModalProjector(config))
    width = 12 if feature_layers == -2 else 36
    sizes = ProjectorConfig((width, 20, 20), hidden_act=ours, bias=bias)
    parts = with_weights_of(
        oracle, lambda rngs: Projector(sizes, rngs=rngs, dtype=jnp.float32), "projector.", "multi_modal_projector."
    )
    x = normal(2, 3, 5, width)
    close(project(*parts, x), oracle(torch.from_numpy(x)), atol=1e-5)


@pytest.mark.parametrize("layers", [1, 3])
def test_other_depths(layers):
    """`linear` has no activation at all, `mlp3x_gelu` none after the last layer."""
    widths = [7, *[11] * layers]
    linears = [torch.nn.Linear(i, o) for i, o in itertools.pairwise(widths)]
    with_gelu = [module for linear in linears for module in (linear, torch.nn.GELU())][:-1]
    oracle = randomise(torch.nn.Sequential(*with_gelu))
    graphdef, state = abstract(
        lambda rngs: Projector(ProjectorConfig((7, *[11] * layers)), rngs=rngs, dtype=jnp.float32)
    )
    filled = [
        (path, leaf.replace(jnp.asarray(getattr(linears[path[1]], path[2]).detach().numpy())))
        for path, leaf in nnx.to_flat_state(state)
    ]
    assert len(filled) == 2 * layers
    x = normal(4, 7)
    close(project(graphdef, nnx.from_flat_state(filled), x), oracle(torch.from_numpy(x)), atol=1e-5)
