"""The one way in which a weight is declared: shape, logical axes, initialiser and dtype, side by side.

Everything else that must know a weight (abstract tree, sharding, coverage of the key tables, parameter counts) reads it
from the module tree; see `abstract` and `logical_axes`.
"""

import contextvars
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

Axes = tuple[str | None, ...]
"""One logical name per axis of a weight; `vila_jax.dist.rules` maps them to mesh axes."""

Initializer = Callable[[jax.Array, tuple[int, ...], DTypeLike], jax.Array]

_shapes_only = contextvars.ContextVar("shapes_only", default=False)

zeros: Initializer = jax.nn.initializers.zeros
ones: Initializer = jax.nn.initializers.ones


def normal(stddev: float) -> Initializer:
    return jax.nn.initializers.normal(stddev)


def fan_in(shape: tuple[int, ...]) -> Initializer:
    """LeCun normal for a kernel whose first axis is the output."""
    return jax.nn.initializers.lecun_normal(in_axis=tuple(range(1, len(shape))), out_axis=0)


def weight(
    shape: tuple[int, ...], axes: Axes, init: Initializer, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
) -> nnx.Param:
    """Declares a weight. `axes` names each axis of `shape`."""
    if len(shape) != len(axes):
        raise ValueError(f"{len(shape)} axes of shape {shape}, but {len(axes)} names {axes}")
    if _shapes_only.get():
        return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)), logical_axes=axes)
    return nnx.Param(init(rngs.params(), shape, dtype), logical_axes=axes)


def abstract(build: Callable[[nnx.Rngs], nnx.Module]) -> tuple[nnx.GraphDef, nnx.State]:
    """Structure and `jax.ShapeDtypeStruct` leaves of a module, without allocating anything.

    Not `nnx.eval_shape`, which traces every initialiser: 12 seconds for a model of 7 B parameters, this takes 0.3.
    """
    token = _shapes_only.set(True)
    try:
        return nnx.split(build(nnx.Rngs()))  # nothing is drawn, and a seed would start the device
    finally:
        _shapes_only.reset(token)


def logical_axes(state: nnx.State) -> dict[str, Axes]:
    """Dotted path of every weight -> the logical names of its axes."""
    return {dotted(path): leaf.get_metadata()["logical_axes"] for path, leaf in nnx.to_flat_state(state)}


def dotted(path: tuple[object, ...]) -> str:
    """`("decoder", "layers", 3, "attn")` -> `decoder.layers.3.attn`, the name that the key tables use."""
    return ".".join(str(part) for part in path)
