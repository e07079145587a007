"""Attention to chosen keys against the same attention with a dense mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nn.oracle import normal
from vila_jax.nn.focus import Focus, focused_attention, mean_weights

B, S, K, G, H = 2, 23, 2, 3, 8


def dense(q, k, v, seen):
    """`[B, T, N, H]` from heads-first keys and values where `seen [B, T, S]`; and the weights, averaged over heads."""
    k, v = (np.repeat(part, G, axis=1) for part in (k, v))
    scores = np.einsum("BTNH,BNSH->BNTS", q, k) / np.sqrt(H)
    weights = np.exp(np.where(seen[:, None], scores, -np.inf))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("BNTS,BNSH->BTNH", weights, v), weights.mean(axis=1)


def causal(index, window):
    behind = index[:, :, None] - np.arange(S)[None, None]
    return (behind >= 0) & (behind < (window or S))


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("decoding", [False, True])
def test_as_with_a_dense_mask(window, decoding):
    """Every third key may be dropped; each row keeps the two that its deciding query attends to most."""
    lengths = np.array([17, 21], np.int32)
    queries = 1 if decoding else S
    q, k, v = normal(B, queries, K * G, H), normal(B, K, S, H, seed=1), normal(B, K, S, H, seed=2)
    index = lengths[:, None] - 1 if decoding else np.tile(np.arange(S), (B, 1))
    optional = np.tile(np.arange(S) % 3 == 0, (B, 1)) & (np.arange(S) < lengths[:, None])
    full = causal(index, window)
    decider = np.zeros(B, int) if decoding else lengths - 1
    attention = dense(q, k, v, full)[1][np.arange(B), decider]
    best = np.zeros((B, S), bool)
    for row in range(B):
        best[row, np.argsort(-np.where(optional[row], attention[row], -1), kind="stable")[:2]] = True
    left = best | (~optional & (np.arange(S) < lengths[:, None]))
    itself = np.arange(S)[None, None] == index[:, :, None]
    expected, _ = dense(q, k, v, full & (left[:, None] | itself))

    given = []

    def choose(row):
        given.append(row)
        return jnp.asarray(left)

    focus = Focus(choose, jnp.asarray(lengths - 1), room=18)
    assert left.sum(axis=1).max() <= 18
    ours = focused_attention(
        *map(jnp.asarray, (q, k, v)), focus, jnp.asarray(lengths - 1) if decoding else None, window
    )
    np.testing.assert_allclose(given[0], attention, rtol=1e-5, atol=1e-6)
    for row in range(B):
        used = slice(None) if decoding else slice(lengths[row])
        np.testing.assert_allclose(ours[row, used], expected[row, used], rtol=1e-4, atol=1e-5)


def test_mean_weights_of_single_rows():
    q, k = jnp.asarray(normal(B, 2, K * G, H)), jnp.asarray(normal(B, K, S, H, seed=1))
    index = np.array([[4, 22], [0, 9]], np.int32)
    _, expected = dense(np.asarray(q), np.asarray(k), np.asarray(k), causal(index, None))
    np.testing.assert_allclose(
        jax.jit(mean_weights, static_argnums=3)(q, k, index, None), expected, rtol=1e-5, atol=1e-6
    )
