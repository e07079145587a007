"""Random weights, made where they are used: no checkpoint on disk, no copy on the host."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vila_jax.hf.load import abstract_model
from vila_jax.nn.config import VLMConfig
from vila_jax.nn.params import dotted


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


def random_state(config: VLMConfig, dtype: DTypeLike) -> tuple[nnx.GraphDef, nnx.State]:
    """A model with random weights: as `vila_jax.hf.load.load_state`, without a checkpoint."""
    graphdef, state = abstract_model(config, dtype)
    flat = list(nnx.to_flat_state(state))
    keys = jax.random.split(jax.random.key(0), len(flat))
    made = [
        (path, leaf.replace(random_weight(key, dotted(path), leaf.get_value().shape, dtype)))
        for key, (path, leaf) in zip(keys, flat, strict=True)
    ]
    return graphdef, jax.block_until_ready(nnx.from_flat_state(made))
