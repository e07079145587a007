"""A model whose products are joined computes what it did before, in every way of reading its prompts."""

import jax
import numpy as np
import pytest
from flax import nnx

import vila_jax
from tests.infer.checkpoints import photo, write
from vila_jax.dist.mesh import make_mesh
from vila_jax.errors import ConfigError
from vila_jax.hf.checkpoint import open_checkpoint
from vila_jax.hf.load import load_state
from vila_jax.infer.fuse import fuse_products
from vila_jax.nn.params import dotted

PROMPT, IMAGE = "w5 <image> w6 w7", photo(60, 60)


def folder_of(text: str, tmp_path_factory):
    """Two of six heads hold keys and values; Qwen2 has biases."""
    sizes = {"head_dim": 8} if text == "llama" else {}
    return write(tmp_path_factory.mktemp(text), text=text, text_args=sizes).folder


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen2 int8,force", "qwen2 int4,group=6,kv=int8,force"])
def pair(request, tmp_path_factory):
    """As it is, and fused."""
    text, _, spec = request.param.partition(" ")
    folder = folder_of(text, tmp_path_factory)
    options = {"dtype": "float32", "quantize": spec or None}
    return [vila_jax.from_pretrained(folder, **options, fuse=fuse) for fuse in (False, True)]


@pytest.mark.parametrize("budget", [None, "fastv:0.5,layer=1"])
def test_logits_are_the_same(pair, budget):
    """FastV reads the attention of single tokens, of queries and keys by themselves."""
    plain, fused = (model.logits(PROMPT, [IMAGE], budget=budget) for model in pair)
    np.testing.assert_allclose(fused, plain, atol=1e-6 * np.abs(plain).max(), rtol=1e-6)


def test_answers_are_the_same(pair):
    options = {"max_new_tokens": 9, "ignore_eos": True}
    plain, fused = (model.generate(PROMPT, [IMAGE], **options) for model in pair)
    assert plain.token_ids == fused.token_ids


def test_weights_are_joined_and_nothing_is_there_twice(tmp_path_factory):
    folder = folder_of("qwen2", tmp_path_factory)
    graphdef, state = load_state(open_checkpoint(folder), dtype=np.float32)
    before = {dotted(path): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}
    sizes = {name: array.size for name, array in before.items()}
    _, joined = fuse_products(graphdef, state)
    after = {dotted(path): leaf.get_value() for path, leaf in nnx.to_flat_state(joined)}
    assert sum(sizes.values()) == sum(array.size for array in after.values())
    attention = "decoder.layers.1.attn."
    parts = [sizes[f"{attention}{part}.weight"] for part in ("q", "k", "v")]
    assert after[f"{attention}qkv.linear.weight"].size == sum(parts) and f"{attention}q.weight" not in after
    assert {name for name, array in before.items() if array.is_deleted()} == before.keys() - after.keys()


def test_not_over_a_mesh(tmp_path):
    with pytest.raises(ConfigError, match=r"one device alone.*Leave out `fuse`"):
        vila_jax.from_pretrained(tmp_path, mesh=make_mesh({"tensor": jax.device_count()}), fuse=True)
