"""Pooling the frames of a video (TSP, "temporal and spatial pooling")."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float


def tsp_pool(features: Float[Array, "F V D"], pool: tuple[int, int, int]) -> Float[Array, "f v D"]:
    """Means over boxes of `pool = (t, h, w)` frames, rows and columns.

    Args:
      features: of every frame, a square grid in raster order.
      pool: (8, 1, 1) makes one frame of eight; (1, 1, 1) changes nothing.

    Returns:
      `f = F / t` frames of `v = V / (h * w)` vectors, in raster order.

    Raises:
      ValueError: a frame is no square, or a size does not divide.
    """
    frames, tokens, width = features.shape
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ValueError(f"features: {tokens} vectors of a frame are no square")
    t, h, w = pool
    for name, size, part in (("frames", frames, t), ("rows", side, h), ("columns", side, w)):
        if size % part:
            raise ValueError(f"pool={pool}: {size} {name} cannot be pooled by {part}")
    boxes = features.reshape(frames // t, t, side // h, h, side // w, w, width)
    means = jnp.mean(boxes, axis=(1, 3, 5), dtype=jnp.float32).astype(features.dtype)
    return means.reshape(frames // t, -1, width)
