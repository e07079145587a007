"""Attention recomputed for scores: the class token's row against what HiRED's own hooks compute, and all rows."""

import jax
import jax.numpy as jnp
import numpy as np

from vila_jax.nn.vit import class_attention, received_attention


def test_golden(golden):
    data = np.load(golden / "budgets" / "hired_attn_from_qk.npz")
    heads = int(data["num_heads"])
    q, k = data["q_proj_out"], data["k_proj_out"]
    q = jnp.asarray(q[:, 0].reshape(q.shape[0], heads, -1))
    k = jnp.asarray(k.reshape(*k.shape[:2], heads, -1))
    rows = class_attention(q, k)
    np.testing.assert_allclose(rows, data["cls_attn"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(rows[..., 1:].sum(axis=1), data["cls_attn_headsum"], rtol=1e-5, atol=1e-7)


def test_computed_in_float32():
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 3, 8)), rng.standard_normal((2, 17, 3, 8))
    q, k = jnp.asarray(q, jnp.bfloat16), jnp.asarray(k, jnp.bfloat16)
    exact_q, exact_k = np.asarray(q, np.float64), np.asarray(k, np.float64)
    logits = np.einsum("rnh,rsnh->rns", exact_q, exact_k) / np.sqrt(8)
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    attention = class_attention(q, k)
    assert attention.dtype == jnp.float32
    np.testing.assert_allclose(attention, expected, rtol=1e-5)


def test_received_attention_is_the_mean_of_all_rows():
    """In float32 too, row by row what one query gives."""
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.standard_normal((2, 5, 3, 8)), jnp.bfloat16) for _ in range(2))
    received = jax.jit(received_attention)(q, k)
    assert received.dtype == jnp.float32
    rows = [jax.jit(class_attention)(q[:, query], k) for query in range(5)]
    np.testing.assert_allclose(received, np.mean(rows, axis=0), rtol=1e-5)
