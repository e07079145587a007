"""Classifiers on the tower that exist only while it is trained, as weights of the group `heads`.

They give every patch a target (colour and content of what it shows) and the class token a global one (what is present
in the tile), so that the class token learns to look at what matters: the attention that HiRED reads.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from train.data.labels import IGNORED
from train.losses import Sums
from train.weights import HEADS, Flat
from vila_jax.scenes import NUM_COLORS, NUM_CONTENTS

_SIZES = {"color": NUM_COLORS, "content": NUM_CONTENTS, "presence": NUM_COLORS * NUM_CONTENTS}
_BACKGROUND = 0.2  # weight of a patch of it, by far the most of all
_PRESENCE = 4.0  # weight of the class token's loss


def initial_heads(width: int, seed: int) -> Flat:
    """Fresh classifiers on features of this width: `heads.color.weight [labels, width]`, `heads.color.bias`, ..."""
    keys = jax.random.split(jax.random.key(seed), len(_SIZES))
    weights = {
        f"{HEADS}.{name}.weight": jax.random.normal(key, (size, width)) * width**-0.5
        for key, (name, size) in zip(keys, _SIZES.items(), strict=True)
    }
    return weights | {f"{HEADS}.{name}.bias": jnp.zeros(size) for name, size in _SIZES.items()}


def label_sums(
    weights: Flat, patches: Float[Array, "B R N D"], token: Float[Array, "B R D"], batch: dict[str, Any]
) -> Sums:
    """The labels' loss times the number of patches that show something, and how many of these are told right.

    Args:
      weights: of the classifiers, among others.
      patches, token: features of the patches, and of the class token, of the tiles of packed rows.
      batch: with the arrays of `train.scenes.labelled.LabelledLayout`; `IGNORED` labels are passed over.
    """
    colors, contents, present = (batch[name] for name in ("colors", "contents", "present"))
    content = _scores(weights, "content", patches)
    loss = _balanced(_scores(weights, "color", patches), colors) + _balanced(content, contents)
    loss = loss + _PRESENCE * _presence(_scores(weights, "presence", token), present)
    shown = contents > 0
    count = jnp.sum(shown, dtype=jnp.int32)
    right = jnp.sum(shown & (jnp.argmax(content, -1) == contents), dtype=jnp.int32)
    return Sums(loss * count, right, count)


def _scores(weights: Flat, name: str, x: Float[Array, "*batch D"]) -> Float[Array, "*batch L"]:
    matrix, bias = (weights[f"{HEADS}.{name}.{part}"].astype(jnp.float32) for part in ("weight", "bias"))
    return x.astype(jnp.float32) @ matrix.T + jnp.expand_dims(bias, tuple(range(x.ndim - 1)))


def _balanced(scores: Float[Array, "B R N L"], labels: Int[Array, "B R N"]) -> Float[Array, ""]:
    """Mean cross entropy."""
    weight = jnp.where(labels > 0, 1.0, _BACKGROUND) * (labels != IGNORED)
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, jnp.maximum(labels, 0))
    return jnp.sum(losses * weight) / jnp.maximum(jnp.sum(weight), 1.0)


def _presence(scores: Float[Array, "B R L"], present: Int[Array, "B R L"]) -> Float[Array, ""]:
    """Mean over tiles and labels."""
    known = present != IGNORED
    losses = jnp.where(known, optax.sigmoid_binary_cross_entropy(scores, present.astype(jnp.float32)), 0.0)
    return jnp.sum(losses) / jnp.maximum(jnp.sum(known), 1)
