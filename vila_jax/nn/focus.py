"""Attention of which single rows are read, and attention to a few chosen keys."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Focus(NamedTuple):
    """Which keys the queries of a layer see. No pytree of arrays: made where it is used.

    Attributes:
      choose: from the attention of the deciding query to all keys, averaged over heads, `[B, S]`, to the keys that are
        left, `[B, S]`; at most `room` of them in each row.
      decider: index of that query among the keys, `[B]`.
      room: static.
    """

    choose: Callable[[Float[Array, "B S"]], Bool[Array, "B S"]]
    decider: Int[Array, " B"]
    room: int


def mean_weights(
    q: Float[Array, "B R N H"], k: Float[Array, "B K S H"], index: Int[Array, "B R"], window: int | None
) -> Float[Array, "B R S"]:
    """Attention that a few queries pay to all keys, averaged over heads, in float32: no fast kernel gives it.

    Args:
      index: of each query among the keys; it sees those up to itself, at most `window` of them.
    """
    scores = jnp.einsum("BRKGH,BKSH->BKGRS", _grouped(q, k), k.astype(jnp.float32), precision="highest")
    visible = _visible(index, jnp.arange(k.shape[2])[None, None, :], window)
    scores = jnp.where(visible[:, None, None], scores * q.shape[-1] ** -0.5, -jnp.inf)
    return jax.nn.softmax(scores, axis=-1).mean(axis=(1, 2))


def focused_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "*rows K S H"],
    v: Float[Array, "*rows K S H"],
    focus: Focus,
    offset: Int[Array, " B"] | None,
    window: int | None,
) -> Float[Array, "B T N H"]:
    """Causal attention to the chosen keys, and of every query to itself; keys and values are gathered once for all.

    For the other arguments see `vila_jax.nn.attention.attention`.
    """
    batch, queries = q.shape[:2]
    k, v = (part.reshape(batch, *part.shape[-3:]) for part in (k, v))
    start = jnp.zeros(batch, jnp.int32) if offset is None else offset
    index = jnp.minimum(start[:, None] + jnp.arange(queries)[None, :], k.shape[2] - 1)
    deciding = jnp.take_along_axis(q, (focus.decider - start)[:, None, None, None], axis=1)
    left = focus.choose(mean_weights(deciding, k, focus.decider[:, None], window)[:, 0])
    order = jnp.argsort(~left, axis=1, stable=True)[:, : focus.room]
    own = jnp.take_along_axis(left, index, axis=1)
    visible = _visible(index, order[:, None, :], window) & jnp.take_along_axis(left, order, axis=1)[:, None, :]
    scores = jnp.einsum("BTKGH,BKSH->BKGTS", _grouped(q, k), _at(k, order).astype(jnp.float32))
    alone = jnp.einsum("BTKGH,BKTH->BKGT", _grouped(q, k), _at(k, index).astype(jnp.float32))
    scores = jnp.where(visible[:, None, None], scores, -jnp.inf)
    alone = jnp.where(own[:, None, None], -jnp.inf, alone)  # it is among the chosen already
    weights = jax.nn.softmax(jnp.concatenate([scores, alone[..., None]], axis=-1) * q.shape[-1] ** -0.5, axis=-1)
    weights = weights.astype(v.dtype)
    out = jnp.einsum("BKGTS,BKSH->BTKGH", weights[..., :-1], _at(v, order))
    out = out + jnp.einsum("BKGT,BKTH->BTKGH", weights[..., -1], _at(v, index))
    return out.reshape(q.shape).astype(q.dtype)


def _grouped(q: Float[Array, "B T N H"], k: Float[Array, "B K S H"]) -> Float[Array, "B T K G H"]:
    return q.reshape(*q.shape[:2], k.shape[1], -1, q.shape[-1]).astype(jnp.float32)


def _at(values: Float[Array, "B K S H"], index: Int[Array, "B U"]) -> Float[Array, "B K U H"]:
    return jnp.take_along_axis(values, index[:, None, :, None], axis=2)


def _visible(query: Int[Array, "B T"], key: Int[Array, "#B #T S"], window: int | None) -> Bool[Array, "B T S"]:
    behind = query[:, :, None] - key
    return (behind >= 0) & (True if window is None else behind < window)
