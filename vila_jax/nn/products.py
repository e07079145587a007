"""Products in the form that the fast kernels of a backend take.

Only one backend needs any care: CPUs, where XLA gives products to a library (YNNPACK). What it wants was found by
measuring, see `docs/performance.md`:

* Its kernels of bfloat16 have results in float32. Asked for results in bfloat16, XLA converts both operands to float32
  and multiplies those, at half the rate. So they are asked for in float32 and rounded once, as GPUs and TPUs do, which
  accumulate in float32 whatever they are asked for.
* A single row of bfloat16 goes to no library at all, but to a loop that converts the weight number by number. A second
  row costs nothing beside that.
* The second operand is packed at every call. For a few rows, as in a step of decoding, packing the weight takes longer
  than reading it: there the weight comes first.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

ROUNDED = "rounded product"
"""Name of products that are rounded, for what is kept for a backward pass: these, not the float32 before them."""

_FEW, _FEW_IN_BFLOAT16, _MANY = 2, 8, 64
"""Rows for which the weight comes first: from these on, up to that."""


def on_cpu() -> bool:
    """Whether programs are made for CPUs."""
    return jax.default_backend() == "cpu"


def contract(spec: str, x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """`jnp.einsum` of two operands, in the dtype of the first."""
    if not _rounds_late(x, y):
        return jnp.einsum(spec, x, y)
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32).astype(x.dtype)


def linear(
    x: Float[Array, "*batch i"], weight: Float[Array, "o i"], dtype: DTypeLike | None = None
) -> Float[Array, "*batch o"]:
    """`x W^T`.

    Args:
      dtype: of the result; by default what the operands promote to.
    """
    if not on_cpu():
        return jnp.einsum("...i,oi->...o", x, weight, preferred_element_type=dtype)
    rounds = _rounds_late(x, weight)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32 if rounds else dtype)
    rows = math.prod(x.shape[:-1])
    if rounds and rows == 1:
        two = jnp.pad(x.reshape(1, -1), ((0, 1), (0, 0)))
        y = product("ri,oi->ro", two, weight)[0].reshape(*x.shape[:-1], -1)
    elif _is_step(x) and (_FEW_IN_BFLOAT16 if rounds else _FEW) <= rows <= _MANY:
        # Without the barrier XLA would see that two operands can be exchanged instead of turning the result.
        turned = jax.lax.optimization_barrier(product("oi,ri->or", weight, x.reshape(rows, -1)))
        y = turned.T.reshape(*x.shape[:-1], -1)
    else:
        y = product("...i,oi->...o", x, weight)
    return _rounded(y, x.dtype if dtype is None else dtype) if rounds else y


def _is_step(x: Float[Array, "*batch i"]) -> bool:
    """Whether these are states of one token of each row, as they are while tokens are generated."""
    return x.ndim == 2 or (x.ndim == 3 and x.shape[1] == 1)


def _rounded(y: Float[Array, "*batch o"], dtype: DTypeLike) -> Float[Array, "*batch o"]:
    return checkpoint_name(y.astype(dtype), ROUNDED)


def _rounds_late(x: Array, y: Array) -> bool:
    return x.dtype == y.dtype == jnp.bfloat16 and on_cpu()
