"""Which weights of a model are quantised, and how they lie there: `NAME.weight` in fewer bits, `NAME.scale` beside it.

Values and scales are weights like all others, with a dotted name, a shape and logical axes: they are sharded, counted
and saved by the same tables.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from vila_jax.errors import QuantizationError
from vila_jax.nn.params import dotted, ones, weight, zeros
from vila_jax.nn.quantized import FORMATS, Kind, groups, quantize
from vila_jax.quantize.spec import PARTS, Quantization

FLOAT32 = 4


def scale_name(name: str) -> str:
    """`decoder.layers.0.attn.q.weight` -> `decoder.layers.0.attn.q.scale`, `decoder.head` -> `decoder.head_scale`."""
    module, _, last = name.rpartition(".")
    return f"{module}.scale" if last == "weight" else f"{name}_scale"


def quantize_structure(model: nnx.Module, quantization: Quantization | None) -> nnx.Module:
    """Gives a model that is being declared (`vila_jax.nn.params.abstract`) weights in fewer bits; returns the model.

    Raises:
      QuantizationError: the model lacks a part that is asked for.
    """
    if quantization is None or quantization.weights is None:
        return model
    flat, rngs = nnx.to_flat_state(nnx.state(model)), nnx.Rngs(0)
    _check_parts(quantization, [dotted(path) for path, _ in flat])
    for path, leaf in flat:
        name = dotted(path)
        if quantization.means(name):
            shape, axes = leaf.get_value().shape, leaf.get_metadata()["logical_axes"]
            scales = shape[0], groups(shape[1], quantization.own_group)
            module: Any = functools.reduce(_child, path[:-1], model)
            dtype = FORMATS[quantization.weights].dtype
            setattr(module, str(path[-1]), weight(shape, axes, zeros, rngs=rngs, dtype=dtype))
            setattr(module, scale_name(name).rpartition(".")[2], weight(scales, axes, ones, rngs=rngs))
    return model


def _check_parts(quantization: Quantization, names: Sequence[str]) -> None:
    for part in quantization.parts:
        if not any(PARTS[part].fullmatch(name) for name in names):
            tied = "Its head is its embedding: say `parts=embedding`." if part == "head" else "Leave it out."
            raise QuantizationError(f"the model has no {part} of its own", where="quantize", fix=tied)


def _child(module: Any, key: Any) -> Any:
    return module[key] if isinstance(key, int) else getattr(module, key)


def quantized(
    name: str,
    array: Array,
    quantization: Quantization,
    shardings: Mapping[str, jax.sharding.Sharding | None] | None = None,
) -> dict[str, Array]:
    """A weight that is quantised, by name: its values and its scales.

    Computed where the weight lies. The numbers do not depend on how it is sharded: a maximum does not.

    Args:
      array: `[o, i]`, in the dtype that it is stored in.
      shardings: of values and scales by name; None leaves them to XLA.
    """
    assert quantization.weights is not None
    names = name, scale_name(name)
    placed = None if shardings is None else tuple(shardings[own] for own in names)
    found = _program(quantization.weights, quantization.own_group, placed)(array)
    return dict(zip(names, found, strict=True))


@functools.cache
def _program(
    kind: Kind, group: int | None, shardings: tuple[jax.sharding.Sharding | None, ...] | None
) -> Callable[[Array], tuple[Array, Array]]:
    """The rounding, compiled."""
    return jax.jit(functools.partial(quantize, kind=kind, group=group), out_shardings=shardings)


def stored_bytes(name: str, shape: tuple[int, ...], quantization: Quantization | None, itemsize: int) -> int:
    """Bytes of a weight, its scales included.

    Args:
      shape: that it is declared with.
      itemsize: bytes of one entry of a weight that is not quantised.
    """
    if quantization is None or quantization.weights is None or not quantization.means(name):
        return itemsize * math.prod(shape)
    values = FORMATS[quantization.weights].bits * math.prod(shape) // 8
    return values + FLOAT32 * shape[0] * groups(shape[1], quantization.own_group)


def entry_bytes(head_dim: int, quantization: Quantization | None, itemsize: int) -> int:
    """Bytes of a key or value of one head and token, its scale included."""
    if quantization is None or quantization.kv is None:
        return itemsize * head_dim
    return FORMATS[quantization.kv].bits * head_dim // 8 + FLOAT32


def is_quantized(array: Any) -> bool:
    """Whether an array of a state, or its shape and dtype, holds numbers in fewer bits."""
    return jnp.dtype(array.dtype) in {jnp.dtype(form.dtype) for form in FORMATS.values()}
