"""Splash attention, the flash kernel that JAX brings for TPUs, behind the arguments of `vila_jax.nn.attention`.

The kernel wants heads first, lengths in multiples of 128 and queries that are scaled already; it reads grouped
key/value heads as they are. Tests interpret it on a CPU and lower it for TPUs. It has never run on one.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jaxtyping import Array, Float, Int

_LANES = 128
_BLOCKS = (512, 384, 256, 128)  # queries, or keys, of a block: the largest that divides the padded length


def splash_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    *,
    causal: bool = False,
    lengths: Int[Array, " B"] | None = None,
    window: int | None = None,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Attention in blocks of queries and keys; scores are never held in memory.

    Args:
      causal, lengths, window: see `vila_jax.nn.attention.attention`.
      interpret: runs the kernel as ordinary operations, on any device.

    Returns:
      As `attention`; where keys end before the window of a query begins, not finite.
    """
    (batch, queries, heads, width), keys = q.shape, k.shape[2]
    scaled = _padded((q * width**-0.5).astype(q.dtype).swapaxes(1, 2))
    k, v = _padded(k), _padded(v)
    kernel = _kernel(heads, scaled.shape[2], k.shape[2], causal, window, interpret)
    if lengths is None and k.shape[2] > keys and not (causal and queries <= keys):
        lengths = jnp.full(batch, keys, jnp.int32)  # or queries would see the keys that are padding
    if lengths is None:
        out = jax.vmap(kernel)(scaled, k, v)
    else:  # what is no padding has segment 0, as all queries have
        hidden = (jnp.arange(k.shape[2])[None, :] >= lengths[:, None]).astype(jnp.int32)
        segments = splash.SegmentIds(jnp.zeros((batch, scaled.shape[2]), jnp.int32), hidden)
        out = jax.vmap(kernel)(scaled, k, v, segments)
    return out[:, :, :queries].swapaxes(1, 2)


def _padded(x: Float[Array, "B N T H"]) -> Float[Array, "B N _T H"]:
    return jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % _LANES), (0, 0)))


@functools.cache
def _kernel(
    heads: int, queries: int, keys: int, causal: bool, window: int | None, interpret: bool
) -> Callable[..., Array]:
    """The kernel for these sizes: which blocks of scores it visits is laid down here, once for all layers."""
    mask: splash.Mask
    if window is not None:
        mask = splash.LocalMask((queries, keys), (window - 1, 0), offset=0)
    elif causal:
        mask = splash.CausalMask((queries, keys))
    else:
        mask = splash.FullMask((queries, keys))
    rows, columns = (next(block for block in _BLOCKS if length % block == 0) for length in (queries, keys))
    sizes = splash.BlockSizes(
        block_q=rows,
        block_kv=columns,
        block_kv_compute=columns,
        block_q_dkv=rows,
        block_kv_dkv=columns,
        block_kv_dkv_compute=columns,
        block_q_dq=rows,
        block_kv_dq=columns,
    )
    with jax.ensure_compile_time_eval():  # models are traced when this is asked for, and the tables outlive the trace
        return splash.make_splash_mha_single_device(
            splash.MultiHeadMask([mask] * heads), block_sizes=sizes, interpret=interpret
        )
