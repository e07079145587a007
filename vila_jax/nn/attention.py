"""One attention for every module, behind one dispatcher.

Masks are never built by callers: they say `causal`, `lengths`, `offset` and `window`, which every fast kernel
understands, where a dense `[T, S]` mask would push most kernels onto a slow path. `segments` packs several samples into
one row:

    segments  0 0 0 0 1 1 1 2 2      a prefix that all share (0), then two samples that do not see each other
    segments  1 1 1 1 2 2 2 3 3      three unrelated samples
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vila_jax.nn.products import contract

Implementation = Literal["xla", "cudnn", "splash"]

_MIN_BLOCK = 64  # queries

_MASKED = -1e30  # not -inf: a row without any visible key must give numbers, not NaN


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "*rows K S H"],
    v: Float[Array, "*rows K S H"],
    *,
    causal: bool = False,
    lengths: Int[Array, " B"] | None = None,
    offset: Int[Array, " B"] | None = None,
    window: int | None = None,
    segments: Int[Array, "B S"] | None = None,
    key_bias: Float[Array, "B S"] | None = None,
    implementation: Implementation | None = None,
) -> Float[Array, "B T N H"]:
    """Scaled dot-product attention with grouped key/value heads; softmax in float32.

    Keys and values are heads first, so that each head is one matrix.

    Args:
      k, v: `[B, K, S, H]`; a single row may come without its batch axis, as `vila_jax.nn.decoder` caches it.
      causal: query `t` sees the keys up to its own index, `offset[b] + t`.
      lengths: keys from `lengths[b]` on are padding.
      offset: index of the first query among the keys (0 when absent; the cache length while decoding).
      window: with `causal`, a query sees only the last `window` keys, itself included.
      segments: with T = S, a query sees only keys of its own segment and of segment 0.
      key_bias: added to the scores of a key, whatever the query; stands alone, without the arguments above.
      implementation: forces a kernel; by default the best one that this device and these arguments allow.

    Returns:
      One vector per query and head, in the dtype of `q`. A query that sees no key at all gets finite garbage.

    Raises:
      ValueError: a window without `causal`, a bias beside other arguments, or a forced kernel that does not know them.
    """
    if window is not None and not causal:
        raise ValueError(f"window={window} needs causal=True")
    if key_bias is not None:
        if causal or any(given is not None for given in (lengths, offset, segments)):
            raise ValueError("key_bias goes with none of causal, lengths, offset, window and segments")
        return _biased_attention(q, k, v, key_bias, implementation)
    implementation = _kernel(q, k, offset, segments, implementation)
    if implementation == "splash":
        return _splash_attention(q, k, v, causal=causal, lengths=lengths, window=window)
    if implementation == "cudnn":
        return jax.nn.dot_product_attention(
            q,
            k.swapaxes(1, 2),
            v.swapaxes(1, 2),
            mask=None if segments is None else _same_segment(segments)[:, None],
            is_causal=causal,
            key_value_seq_lengths=lengths,
            local_window_size=None if window is None else (window - 1, 0),
            implementation="cudnn",
        )
    if causal and segments is None and q.shape[1] >= 2 * _MIN_BLOCK and (offset is not None or _is_square(q, k)):
        return _attention_in_blocks(q, k, v, lengths, offset, window)
    visible = _visible(
        q.shape[1], k.shape[-2], causal=causal, lengths=lengths, offset=offset, window=window, segments=segments
    )
    if segments is not None:
        return _packed_attention(q, k, v, visible)
    return _xla_attention(q, k, v, visible)


def _kernel(
    q: Float[Array, "B T N H"],
    k: Float[Array, "*rows K S H"],
    offset: Int[Array, " B"] | None,
    segments: Int[Array, "B S"] | None,
    asked: Implementation | None,
) -> Implementation:
    """The kernel that was asked for, or the best one that knows these arguments."""
    known, packed = offset is None and k.ndim == 4, segments is not None
    if asked is None:
        return choose_implementation(q.dtype, q.shape[-1], jax.default_backend(), packed=packed) if known else "xla"
    if asked != "xla" and (not known or (packed and asked != "cudnn")):
        raise ValueError(f"{asked} attention does not know these arguments: leave the choice of kernel open")
    return asked


def _splash_attention(*args: Array, **options: Any) -> Array:
    from vila_jax.nn.splash import splash_attention  # here alone: importing Pallas takes a while

    return splash_attention(*args, **options)


def _biased_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    key_bias: Float[Array, "B S"],
    implementation: Implementation | None,
) -> Float[Array, "B T N H"]:
    """Attention with a bias of every key. The fast kernel, which knows none per key, is given wider heads instead."""
    width = q.shape[-1]
    wider = width_with_bias(width)
    if (implementation or choose_implementation(q.dtype, wider, jax.default_backend())) != "cudnn":
        return _xla_attention(q, k, v, None, key_bias)
    q, k, v = widen_by_bias(q, k, v, key_bias)
    out = jax.nn.dot_product_attention(q, k.swapaxes(1, 2), v.swapaxes(1, 2), scale=width**-0.5, implementation="cudnn")
    return out[..., :width]


def widen_by_bias(
    q: Float[Array, "B T N H"], k: Float[Array, "B K S H"], v: Float[Array, "B K S H"], key_bias: Float[Array, "B S"]
) -> tuple[Float[Array, "B T N W"], Float[Array, "B K S W"], Float[Array, "B K S W"]]:
    """Heads of further channels, whose products, scaled by `H**-0.5` like the others, are the bias.

    Two of them carry it, as a number of the keys' dtype and what that leaves of it; the rest is padding.
    """
    more = width_with_bias(q.shape[-1]) - q.shape[-1]
    bias = key_bias.astype(jnp.float32) * q.shape[-1] ** 0.5
    high = bias.astype(k.dtype)
    low = (bias - high.astype(jnp.float32)).astype(k.dtype)
    carried = jnp.pad(jnp.stack([high, low], axis=-1), ((0, 0), (0, 0), (0, more - 2)))
    carried = jnp.broadcast_to(carried[:, None], (*k.shape[:-1], more))
    q = jnp.concatenate([q, jnp.ones((*q.shape[:-1], more), q.dtype)], axis=-1)
    return q, jnp.concatenate([k, carried], axis=-1), jnp.pad(v, ((0, 0), (0, 0), (0, 0), (0, more)))


def width_with_bias(width: int) -> int:
    """Two channels more, rounded up to a multiple of 8, as the fast kernel asks for."""
    return -(-(width + 2) // 8) * 8


def causal_blocks(queries: int) -> list[tuple[int, int]]:
    """Where the blocks of queries begin and end, in which XLA holds the scores of causal attention.

    A third of the queries each, in multiples of 64.
    """
    size = max(_MIN_BLOCK, -(-queries // (3 * 64)) * 64)
    return [(start, min(queries, start + size)) for start in range(0, queries, size)]


def _is_square(q: Float[Array, "B T N H"], k: Float[Array, "*rows K S H"]) -> bool:
    """Whether queries and keys are the same tokens."""
    return k.ndim == 4 and q.shape[1] == k.shape[2]


def _attention_in_blocks(
    q: Float[Array, "B T N H"],
    k: Float[Array, "*rows K S H"],
    v: Float[Array, "*rows K S H"],
    lengths: Int[Array, " B"] | None,
    offset: Int[Array, " B"] | None,
    window: int | None,
) -> Float[Array, "B T N H"]:
    """Causal attention in blocks of queries, so that a block's scores stay in the cache of the processor.

    Without an offset queries and keys are the same tokens, and each block reads only the keys before its end: three
    blocks leave out a third of the products and of the softmax. More leave out little more, and each block is four
    programs of XLA's library, which plans every one when it first runs (`docs/performance.md`).
    """
    blocks = []
    for start, end in causal_blocks(q.shape[1]):
        first, stop = 0, k.shape[-2]
        if offset is None:
            first, stop = 0 if window is None else max(0, start - window + 1), end
        visible = _visible(
            end - start,
            stop - first,
            causal=True,
            lengths=None if lengths is None else lengths - first,
            offset=jnp.full(q.shape[0], start - first, jnp.int32) if offset is None else offset + start,
            window=window,
            segments=None,
        )
        blocks.append(_xla_attention(q[:, start:end], k[..., first:stop, :], v[..., first:stop, :], visible))
    return jnp.concatenate(blocks, axis=1)


def _xla_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "*rows K S H"],
    v: Float[Array, "*rows K S H"],
    visible: Bool[Array, "#B 1 1 #T S"] | None,
    key_bias: Float[Array, "B S"] | None = None,
) -> Float[Array, "B T N H"]:
    """Two matrix products per key/value head.

    All queries that share a head are the rows `M = G * T` of one matrix, and keys and values are used as they lie in
    memory. Other spellings of the same products make XLA copy the cache at every step of a decode loop.
    """
    batch, queries, heads, width = q.shape
    kv_heads, keys = k.shape[-3:-1]
    grouped = (batch, kv_heads, heads // kv_heads, queries)
    rows = q.reshape(batch, queries, *grouped[1:3], width).transpose(0, 2, 3, 1, 4)
    rows = rows.reshape(*k.shape[:-2], -1, width)
    scores = jnp.einsum("...MH,...SH->...MS", rows, k, preferred_element_type=jnp.float32) * width**-0.5
    scores = scores.reshape(*grouped, keys)
    if key_bias is not None:
        scores = scores + key_bias[:, None, None, None, :]
    if visible is not None:
        scores = jnp.where(visible, scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype).reshape(*k.shape[:-2], -1, keys)
    out = contract("...MS,...SH->...MH", weights, v)
    return out.reshape(*grouped, width).transpose(0, 3, 1, 2, 4).reshape(q.shape)


def _packed_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K T H"],
    v: Float[Array, "B K T H"],
    visible: Bool[Array, "#B 1 1 #T S"] | None,
) -> Float[Array, "B T N H"]:
    """The products of `_xla_attention` with queries as an axis of their own, as training spells them.

    Where a mesh splits rows into stretches of tokens, every device then keeps its queries and gathers keys and values;
    with queries and heads in one axis XLA would gather the queries, too.
    """
    batch, queries, heads, width = q.shape
    grouped = q.reshape(batch, queries, k.shape[1], heads // k.shape[1], width)
    scores = jnp.einsum("BTKGH,BKSH->BKGTS", grouped, k, preferred_element_type=jnp.float32) * width**-0.5
    if visible is not None:
        scores = jnp.where(visible, scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return contract("BKGTS,BKSH->BTKGH", weights, v).reshape(q.shape)


def _visible(
    queries: int,
    keys: int,
    *,
    causal: bool,
    lengths: Int[Array, " B"] | None,
    offset: Int[Array, " B"] | None,
    window: int | None,
    segments: Int[Array, "B S"] | None,
) -> Bool[Array, "#B 1 1 #T S"] | None:
    """Which query sees which key, or None when every one sees all."""
    key = jnp.arange(keys)[None, None, None, None, :]
    query = jnp.arange(queries)[None, None, None, :, None]
    if offset is not None:
        query = query + offset[:, None, None, None, None]
    terms = []
    if causal:
        terms.append(key <= query)
    if window is not None:
        terms.append(key > query - window)
    if lengths is not None:
        terms.append(key < lengths[:, None, None, None, None])
    if segments is not None:
        terms.append(_same_segment(segments)[:, None, None])
    return functools.reduce(jnp.logical_and, terms) if terms else None


def _same_segment(segments: Int[Array, "B S"]) -> Bool[Array, "B S S"]:
    """Whether a query may see a key: of its own segment, or of segment 0."""
    own, other = segments[:, :, None], segments[:, None, :]
    return (own == other) | (other == 0)


def choose_implementation(dtype: jnp.dtype, head_dim: int, platform: str, *, packed: bool = False) -> Implementation:
    """Flash attention where the device, dtype, head width and packed segments allow it, XLA elsewhere."""
    if platform == "tpu":
        return "splash" if not packed and splash_works() else "xla"
    fits = dtype in (jnp.float16, jnp.bfloat16) and head_dim % 8 == 0 and head_dim <= 128
    works = cudnn_packs if packed else cudnn_works
    return "cudnn" if platform == "gpu" and fits and works() else "xla"


@functools.cache
def cudnn_works() -> bool:
    """Runs cuDNN attention once on a tiny input; says once if it does not work here."""
    run = functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")
    return _works("cuDNN", run, (1, 128, 2, 64))


@functools.cache
def cudnn_packs() -> bool:
    """As `cudnn_works`, for packed rows: with a mask, whose zeros and minus infinities it adds to the scores, and back.

    With several devices it is not asked for: it refuses rows that a mesh splits into stretches of tokens.
    """
    mask = jnp.ones((1, 1, 128, 128), bool)
    run = functools.partial(jax.nn.dot_product_attention, mask=mask, is_causal=True, implementation="cudnn")
    gradients = jax.grad(lambda *arrays: run(*arrays).astype(jnp.float32).sum(), argnums=(0, 1, 2))
    return jax.device_count() == 1 and _works("cuDNN's packed", gradients, (1, 128, 2, 64))


@functools.cache
def splash_works() -> bool:
    """Runs splash attention once on a tiny input; says once if it does not work here.

    With several devices it is not asked for: XLA cannot split a kernel of Pallas among them.
    """
    run = functools.partial(_splash_attention, causal=True)
    return jax.device_count() == 1 and _works("splash", run, (1, 8, 8, 128))


def _works(name: str, run: Callable[..., Array], shape: tuple[int, ...]) -> bool:
    try:
        with jax.ensure_compile_time_eval():  # the first question is asked while a model is being traced
            x = jnp.ones(shape, jnp.bfloat16)
            jax.block_until_ready(jax.jit(run)(x, x, x))
    except Exception as error:  # any failure of the probe means: not here
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        warnings.warn(f"{name} attention does not work here, XLA attention is used: {reason}", stacklevel=3)
        return False
    return True
