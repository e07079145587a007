"""The dispatcher: XLA attention against PyTorch's with explicit masks, and which kernel is chosen when."""

import functools
import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.nn.oracle import close, normal
from vila_jax.nn import attention as module
from vila_jax.nn.attention import attention, choose_implementation, cudnn_packs, cudnn_works, widen_by_bias

BATCH, HEADS, WIDTH = 2, 6, 10
LENGTHS = np.array([11, 3])
OFFSET = np.array([4, 0])
SEGMENTS = np.array([[0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 3], [1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2]])


def arrays(queries: int, keys: int, kv_heads: int) -> tuple[np.ndarray, ...]:
    shapes = ((queries, HEADS), (keys, kv_heads), (keys, kv_heads))
    return tuple(2 * normal(BATCH, *shape, WIDTH, seed=i) for i, shape in enumerate(shapes))


def halves(length: int, kv_heads: int) -> tuple[jax.Array, ...]:
    """Arrays that a flash kernel could take: bfloat16, a head width of 8; keys and values heads first."""
    q, k, v = (jnp.asarray(x[..., :8], jnp.bfloat16) for x in arrays(length, length, kv_heads))
    return q, k.swapaxes(1, 2), v.swapaxes(1, 2)


def mask(queries: int, keys: int, *, causal=False, lengths=None, offset=None, window=None, segments=None) -> np.ndarray:
    """What the arguments say, one query and key at a time."""
    visible = np.ones((BATCH, queries, keys), bool)
    for b, t, s in itertools.product(range(BATCH), range(queries), range(keys)):
        index = t + (0 if offset is None else offset[b])
        if causal and s > index:
            visible[b, t, s] = False
        if window is not None and s <= index - window:
            visible[b, t, s] = False
        if lengths is not None and s >= lengths[b]:
            visible[b, t, s] = False
        if segments is not None and segments[b, s] not in (0, segments[b, t]):
            visible[b, t, s] = False
    return visible


def expected(q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: np.ndarray) -> np.ndarray:
    q, k, v = (torch.from_numpy(x).transpose(1, 2) for x in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=torch.from_numpy(visible)[:, None], enable_gqa=True
    )
    return out.transpose(1, 2).numpy()


def compare(q, k, v, implementation: str = "xla", **arguments) -> None:
    """Equal for every query that sees a key, finite for the others."""
    visible = mask(q.shape[1], k.shape[1], **arguments)
    arrays = jnp.asarray(q), jnp.asarray(k).swapaxes(1, 2), jnp.asarray(v).swapaxes(1, 2)
    ours = np.asarray(attention(*arrays, implementation=implementation, **{n: _array(a) for n, a in arguments.items()}))
    assert np.isfinite(ours).all()
    sees = visible.any(axis=-1)
    assert sees.any()
    close(ours[sees], expected(q, k, v, visible)[sees], atol=1e-5)


def _array(argument):
    return jnp.asarray(argument, jnp.int32) if isinstance(argument, np.ndarray) else argument


@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["all keys", "lengths"])
@pytest.mark.parametrize(("queries", "offset"), [(11, None), (5, None), (5, OFFSET), (1, OFFSET)])
def test_causal(window, lengths, queries, offset):
    compare(*arrays(queries, 11, 2), causal=True, window=window, lengths=lengths, offset=offset)


@pytest.mark.parametrize("window", [None, 70, 300])
@pytest.mark.parametrize("lengths", [None, np.array([131, 40])], ids=["all keys", "lengths"])
@pytest.mark.parametrize("length", [127, 128, 130, 300])
def test_long_prompts_are_read_in_blocks(window, lengths, length):
    compare(*arrays(length, length, 2), causal=True, window=window, lengths=lengths)


def test_blocks_leave_out_keys_that_no_query_sees():
    q, k, v = (jnp.asarray(x) for x in arrays(512, 512, 2))
    run = jax.jit(functools.partial(attention, causal=True, implementation="xla"))
    whole = jax.jit(functools.partial(attention, implementation="xla"))
    blocks, all_keys = (
        f.lower(q, k.swapaxes(1, 2), v.swapaxes(1, 2)).compile().cost_analysis()["flops"] for f in (run, whole)
    )
    assert blocks < 0.7 * all_keys


@pytest.mark.parametrize("kv_heads", [6, 3, 1])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["all keys", "lengths"])
@pytest.mark.parametrize("queries", [11, 4])
def test_bidirectional(kv_heads, lengths, queries):
    compare(*arrays(queries, 11, kv_heads), lengths=lengths)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["all keys", "lengths"])
def test_segments(causal, lengths):
    compare(*arrays(11, 11, 2), causal=causal, segments=SEGMENTS, lengths=lengths)


def test_softmax_is_float32_in_bfloat16():
    """Scores of one row lie closer together than bfloat16 resolves: rounded, they would give equal weights."""
    keys = 64
    q = jnp.ones((1, 1, 1, 8), jnp.bfloat16)
    k = np.full((1, keys, 1, 8), 32.0, np.float32)
    k[0, :, 0, 0] += np.linspace(0, 7.75, keys)
    k = jnp.asarray(k, jnp.bfloat16)
    v = jnp.asarray(np.linspace(-1, 1, keys)[None, :, None, None] * np.ones((1, 1, 1, 8)), jnp.bfloat16)
    q64, k64, v64 = (torch.from_numpy(np.asarray(x, np.float64)).transpose(1, 2) for x in (q, k, v))
    precise = torch.nn.functional.scaled_dot_product_attention(q64, k64, v64).transpose(1, 2).numpy()
    ours = attention(q, k.swapaxes(1, 2), v.swapaxes(1, 2))
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(ours, np.float64), precise, rtol=2**-7)


def test_single_row_without_batch_axis():
    """As in the cache of a batch of one."""
    q, k, v = (x[:1] for x in arrays(2, 11, 3))
    visible = mask(2, 11, causal=True, offset=OFFSET)[:1]
    first = jnp.asarray(k[0]).swapaxes(0, 1), jnp.asarray(v[0]).swapaxes(0, 1)
    ours = attention(jnp.asarray(q), *first, causal=True, offset=jnp.asarray(OFFSET[:1]))
    close(ours, expected(q, k, v, visible), atol=1e-5)


def test_window_needs_causal():
    with pytest.raises(ValueError, match="window=3 needs causal"):
        attention(*halves(4, 6), window=3)


@pytest.mark.parametrize(
    ("platform", "dtype", "head_dim", "works", "chosen"),
    [
        ("gpu", jnp.bfloat16, 64, True, "cudnn"),
        ("gpu", jnp.float16, 72, True, "cudnn"),
        ("gpu", jnp.bfloat16, 128, True, "cudnn"),
        ("gpu", jnp.bfloat16, 64, False, "xla"),
        ("gpu", jnp.float32, 64, True, "xla"),
        ("gpu", jnp.bfloat16, 136, True, "xla"),
        ("gpu", jnp.bfloat16, 60, True, "xla"),
        ("cpu", jnp.bfloat16, 64, True, "xla"),
        ("gpu, packed", jnp.bfloat16, 64, True, "cudnn"),
        ("gpu, packed", jnp.bfloat16, 64, False, "xla"),
        ("tpu, packed", jnp.bfloat16, 64, True, "xla"),
        ("tpu", jnp.bfloat16, 64, True, "splash"),
        ("tpu", jnp.float32, 60, True, "splash"),
        ("tpu", jnp.bfloat16, 64, False, "xla"),
    ],
)
def test_choice(monkeypatch, platform, dtype, head_dim, works, chosen):
    probe = {"gpu": "cudnn_works", "gpu, packed": "cudnn_packs"}.get(platform, "splash_works")
    monkeypatch.setattr(module, probe, lambda: works)
    platform, _, packed = platform.partition(", ")
    assert choose_implementation(jnp.zeros(1, dtype).dtype, head_dim, platform, packed=bool(packed)) == chosen


@pytest.fixture
def fresh_probe():
    """Forgets what the probe found, before and after."""
    cudnn_works.cache_clear()
    yield
    cudnn_works.cache_clear()


@pytest.fixture
def stand_in(monkeypatch):
    """XLA in place of the cuDNN kernel, on a machine that calls itself a GPU; the list of the calls it got."""
    real, calls = jax.nn.dot_product_attention, []

    def kernel(*args, implementation, **rest):
        assert implementation == "cudnn"
        calls.append(rest)
        return real(*args, implementation="xla", **rest)

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    return calls


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["alone", "first asked while a model is traced"])
def test_probe_that_fails_warns_once(fresh_probe, monkeypatch, wrap):
    """There is no cuDNN here, so this is the real failure."""
    run = wrap(functools.partial(attention, causal=True))
    q, k, v = halves(5, 3)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.warns(UserWarning, match="cuDNN attention does not work here, XLA attention is used: ."):
        out = run(q, k, v)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(out, attention(q, k, v, causal=True))
    theirs = (np.asarray(x, np.float32) for x in (q, k.swapaxes(1, 2), v.swapaxes(1, 2)))
    close(out.astype(jnp.float32), expected(*theirs, mask(5, 5, causal=True)), atol=0.05)


def test_probe_that_succeeds(fresh_probe, stand_in, count_compilations):
    run = functools.partial(attention, causal=True)
    inputs = halves(5, 3)
    with count_compilations() as count:
        jax.eval_shape(run, *inputs)
    assert count() > 0, "the probe really ran, although the model was only traced"
    assert len(stand_in) == 2, "the probe, then the call itself"
    jax.eval_shape(run, *halves(7, 3))
    assert len(stand_in) == 3, "no second probe"


@pytest.mark.parametrize(
    "arguments",
    [
        dict(),
        dict(causal=True),
        dict(causal=True, window=4),
        dict(lengths=LENGTHS),
        dict(causal=True, lengths=LENGTHS),
        dict(causal=True, window=3, lengths=LENGTHS),
    ],
    ids=str,
)
@pytest.mark.parametrize("queries", [11, 4])
def test_arguments_given_to_cudnn(stand_in, arguments, queries):
    """What we ask of the kernel means the same, in JAX's own reading of the arguments."""
    compare(*arrays(queries, 11, 3), "cudnn", **arguments)
    assert len(stand_in) == 1


@pytest.mark.parametrize("implementation", ["xla", "cudnn"])
@pytest.mark.parametrize("kv_heads", [6, 2])
def test_bias_of_keys(stand_in, implementation, kv_heads):
    """Sizes of merged tokens, and keys that are hidden; the kernel, which knows no such bias, is given wider heads."""
    bias = np.log(np.arange(1, 2 * 11 + 1, dtype=np.float32)).reshape(2, 11)
    bias[0, 3:] = -1e3
    q, k, v = arrays(11, 11, kv_heads)
    heads_first = jnp.asarray(k).swapaxes(1, 2), jnp.asarray(v).swapaxes(1, 2)
    ours = attention(jnp.asarray(q), *heads_first, key_bias=jnp.asarray(bias), implementation=implementation)
    q, k, v = (torch.from_numpy(x).transpose(1, 2) for x in (q, k, v))
    mask = torch.from_numpy(bias)[:, None, None, :]
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    close(ours, theirs.transpose(1, 2), atol=1e-5)
    assert len(stand_in) == (implementation == "cudnn")


def test_bias_is_precise_in_bfloat16():
    """Rounded to the keys' type, a bias would be off by half a percent of itself."""
    q, k, v = halves(11, 3)
    bias = jnp.log(jnp.arange(1, 23, dtype=jnp.float32)).reshape(2, 11)
    wide_q, wide_k, wide_v = widen_by_bias(q, k, v, bias)
    assert wide_q.shape[-1] == wide_k.shape[-1] == wide_v.shape[-1] == 16 and wide_k.dtype == jnp.bfloat16
    added = jnp.sum(wide_k[..., 8:].astype(jnp.float32), axis=-1) * 8**-0.5
    close(added, np.broadcast_to(np.asarray(bias)[:, None], added.shape), atol=1e-4)


@pytest.mark.parametrize("arguments", [dict(causal=True), dict(lengths=LENGTHS), dict(segments=SEGMENTS)], ids=str)
def test_bias_stands_alone(arguments):
    with pytest.raises(ValueError, match="key_bias goes with none of"):
        attention(*halves(11, 3), key_bias=jnp.zeros((2, 11)), **{n: _array(a) for n, a in arguments.items()})


def test_single_row_without_batch_axis_is_not_for_cudnn(fresh_probe, stand_in):
    q, k, v = halves(5, 3)
    attention(q[:1], k[0], v[0], causal=True)
    assert not stand_in


@pytest.mark.parametrize(
    ("kernel", "arguments"),
    [("cudnn", dict(offset=OFFSET)), ("splash", dict(offset=OFFSET)), ("splash", dict(segments=SEGMENTS))],
    ids=str,
)
def test_arguments_that_kernels_do_not_know(fresh_probe, stand_in, kernel, arguments):
    q, k, v = halves(11, 3)
    arguments = {name: _array(value) for name, value in arguments.items()}
    if kernel == "cudnn":
        attention(q, k, v, causal=True, **arguments)
        assert not stand_in
    with pytest.raises(ValueError, match=f"{kernel} attention does not know these arguments"):
        attention(q, k, v, causal=True, **arguments, implementation=kernel)


def test_packed_rows_go_to_cudnn_where_it_takes_masks(monkeypatch, stand_in):
    """Forwards and backwards, in the words of JAX's own attention."""
    monkeypatch.setattr(module, "cudnn_packs", lambda: True)
    q, k, v = halves(11, 3)

    def loss(arrays, implementation):
        out = attention(*arrays, causal=True, segments=jnp.asarray(SEGMENTS), implementation=implementation)
        return jnp.sum(out.astype(jnp.float32) ** 2)

    ours, gradients = jax.value_and_grad(loss)((q, k, v), None)
    assert [call["is_causal"] for call in stand_in] == [True]
    wanted, theirs = jax.value_and_grad(loss)((q, k, v), "xla")
    assert len(stand_in) == 1
    assert float(ours) == pytest.approx(float(wanted), rel=0.02)
    for own, other in zip(gradients, theirs, strict=True):
        close(own.astype(jnp.float32), other.astype(jnp.float32), atol=0.1)


def test_packed_rows_stay_with_xla_on_several_devices_and_where_the_probe_fails(stand_in, monkeypatch):
    cudnn_packs.cache_clear()
    attention(*halves(11, 3), causal=True, segments=jnp.asarray(SEGMENTS))
    assert jax.device_count() > 1 and not stand_in, "there are several devices in the tests"
    cudnn_packs.cache_clear()
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    attention(*halves(11, 3), causal=True, segments=jnp.asarray(SEGMENTS))
    assert len(stand_in) == 2, "the probe, then the call itself"
    cudnn_packs.cache_clear()
