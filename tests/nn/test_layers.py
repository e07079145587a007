"""Activations and norms against PyTorch's."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tests.nn.oracle import close, normal
from vila_jax.nn.layers import ACTIVATIONS, LayerNorm, RMSNorm

THEIRS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu", "silu": "silu", "relu": "relu"}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    x = 3 * normal(4, 50)
    close(ACTIVATIONS[name](jnp.asarray(x)), ACT2FN[THEIRS[name]](torch.from_numpy(x)), atol=2e-6)


@pytest.mark.parametrize("norm", [LayerNorm, RMSNorm])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_norms_compute_in_float32(norm, dtype):
    """A large mean and a tiny spread: bfloat16 arithmetic would lose all of it. The result keeps the input's dtype."""
    width, eps = 48, 1e-3
    x = jnp.asarray(100 + normal(3, 5, width), dtype)
    layer = norm(width, eps, rngs=nnx.Rngs(0), dtype=dtype)
    scale, bias = (jnp.asarray(normal(width, seed=i), dtype) for i in (1, 2))
    layer.weight[...] = scale
    tensors = [torch.from_numpy(np.array(a, np.float32)) for a in (x, scale, bias)]
    if norm is LayerNorm:
        layer.bias[...] = bias
        expected = torch.nn.functional.layer_norm(tensors[0], (width,), *tensors[1:], eps=eps)
    else:
        oracle = LlamaRMSNorm(width, eps)
        oracle.weight.data = tensors[1]
        expected = oracle(tensors[0])
    ours = layer(x)  # not jitted: XLA would fuse, and then keep more digits than asked for
    assert ours.dtype == dtype
    precision = 2**-8 if dtype == jnp.bfloat16 else 1e-4
    np.testing.assert_allclose(np.asarray(ours, np.float32), expected.detach().numpy(), rtol=precision, atol=precision)
