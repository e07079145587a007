"""Random weights, made where they are used: no checkpoint on disk, no copy on the host."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vila_jax.hf.load import abstract_model, weight_shapes
from vila_jax.nn.config import VLMConfig
from vila_jax.nn.params import dotted
from vila_jax.quantize.spec import Quantization
from vila_jax.quantize.structure import quantized


def random_weight(key: Array, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Float[Array, "..."]:
    """Small random numbers on the default device; what a norm multiplies by stays near one.

    Args:
      name: dotted path of the weight.
    """
    mean = float("norm" in name and name.endswith("weight"))
    return _normal(key, mean, shape=shape, dtype=jnp.dtype(dtype).name)


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _normal(key: Array, mean: Float[Array, ""], *, shape: tuple[int, ...], dtype: str) -> Float[Array, "..."]:
    return (mean + 0.02 * jax.random.normal(key, shape)).astype(dtype)


def random_state(
    config: VLMConfig, dtype: DTypeLike, quantization: Quantization | None = None
) -> tuple[nnx.GraphDef, nnx.State]:
    """A model with random weights: as `vila_jax.hf.load.load_state`, without a checkpoint."""
    graphdef, state = abstract_model(config, dtype, quantization)
    shapes = weight_shapes(config)
    keys = jax.random.split(jax.random.key(0), len(shapes))
    made: dict[str, Array] = {}
    for key, (name, shape) in zip(keys, shapes.items(), strict=True):
        array = random_weight(key, name, shape, dtype)
        chosen = quantization is not None and quantization.means(name)
        made |= quantized(name, array, quantization) if quantization and chosen else {name: array}
    flat = [(path, leaf.replace(made[dotted(path)])) for path, leaf in nnx.to_flat_state(state)]
    return graphdef, jax.block_until_ready(nnx.from_flat_state(flat))
