"""Attention rows recomputed for scoring, because a flash kernel returns none.

Axes here are those of the tower: `R` tiles, `N` heads, `H` head width, `S` positions with the class token first.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def cls_attention_name(block: int) -> str:
    """Name of the tower intermediate that holds `cls_scores` of block `block` (0-based)."""
    return f"cls_attention/{block}"


def cls_attention(q_cls: Float[Array, "R N H"], k: Float[Array, "R S N H"]) -> Float[Array, "R N S"]:
    """Attention of the class token, in float32: `softmax(q k^T / sqrt(H))`, its own key included.

    Costs one row of the attention matrix; `q_cls` and `k` are the projections with their biases, as the block uses
    them.
    """
    q_cls, k = q_cls.astype(jnp.float32), k.astype(jnp.float32)
    # Not at the default precision: with TF32 the order of the scores, and so the tokens, would depend on the device.
    logits = jnp.einsum("RNH,RSNH->RNS", q_cls, k, precision=jax.lax.Precision.HIGHEST)
    return jax.nn.softmax(logits * q_cls.shape[-1] ** -0.5, axis=-1)


def cls_scores(q_cls: Float[Array, "R N H"], k: Float[Array, "R S N H"]) -> Float[Array, "R patches"]:
    """Attention of the class token to each patch, summed over the heads; the class token's own column is left out."""
    return cls_attention(q_cls, k)[..., 1:].sum(axis=1)
