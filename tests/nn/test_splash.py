"""Splash attention, interpreted on this machine, against XLA's; and what of it can be known of TPUs without one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nn.oracle import close, normal
from vila_jax.nn import attention as module
from vila_jax.nn.attention import attention, splash_works
from vila_jax.nn.splash import splash_attention

HEADS, WIDTH = 4, 24
LENGTHS = jnp.array([33, 5])


def arrays(queries: int, keys: int, kv_heads: int = 2) -> tuple[jax.Array, ...]:
    shapes = (2, queries, HEADS, WIDTH), (2, kv_heads, keys, WIDTH), (2, kv_heads, keys, WIDTH)
    return tuple(2 * jnp.asarray(normal(*shape, seed=i)) for i, shape in enumerate(shapes))


@pytest.mark.parametrize(
    ("queries", "keys", "arguments"),
    [
        (40, 40, dict(causal=True)),
        (300, 300, dict(causal=True)),  # blocks that no query sees, others that some do
        (300, 300, dict(causal=True, window=70)),
        (40, 40, dict(causal=True, lengths=LENGTHS)),
        (40, 40, dict()),
        (128, 128, dict()),
        (1, 40, dict(lengths=LENGTHS)),  # the query of a pooling head
    ],
    ids=str,
)
def test_equals_xla(queries, keys, arguments):
    q, k, v = arrays(queries, keys)
    ours = splash_attention(q, k, v, **arguments, interpret=True)
    close(ours, attention(q, k, v, **arguments, implementation="xla"), atol=1e-5)


def test_gradients_equal_those_of_xla():
    def total(run, *inputs):
        return jnp.sum(jnp.sin(run(*inputs)))

    inputs = arrays(40, 40)
    ours, theirs = (
        jax.grad(functools.partial(total, functools.partial(run, causal=True)), argnums=(0, 1, 2))(*inputs)
        for run in (functools.partial(splash_attention, interpret=True), attention)
    )
    for mine, other in zip(ours, theirs, strict=True):
        close(mine, other, atol=1e-4)


@pytest.mark.parametrize("head_dim", [64, 72, 128])
@pytest.mark.parametrize("arguments", [dict(), dict(causal=True), dict(causal=True, window=256)], ids=str)
def test_lowers_for_tpus(head_dim, arguments):
    """To the kernel that a TPU's compiler is given, which is as far as a machine without one can see."""
    q = jax.ShapeDtypeStruct((2, 577, 16, head_dim), jnp.bfloat16)
    k = jax.ShapeDtypeStruct((2, 4, 577, head_dim), jnp.bfloat16)
    run = jax.jit(functools.partial(attention, implementation="splash", **arguments))
    exported = jax.export.export(run, platforms=["tpu"])(q, k, k)
    text = exported.mlir_module()
    assert exported.platforms == ("tpu",) and "tpu_custom_call" in text
    assert exported.out_avals[0].shape == q.shape and "577x577x" not in text and "640x640x" not in text


@pytest.fixture
def fresh_probe():
    splash_works.cache_clear()
    yield
    splash_works.cache_clear()


def test_probe_that_fails_warns(fresh_probe, monkeypatch):
    """There is no TPU here, so this is the real failure."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    q, k, v = arrays(40, 40)
    with pytest.warns(UserWarning, match="splash attention does not work here, XLA attention is used: ."):
        out = attention(q, k, v, causal=True)
    np.testing.assert_array_equal(out, attention(q, k, v, causal=True, implementation="xla"))


def test_several_devices_share_no_kernel(fresh_probe, monkeypatch):
    monkeypatch.setattr(module, "_works", lambda *_: pytest.fail("not asked for"))
    assert jax.device_count() > 1 and not splash_works()
