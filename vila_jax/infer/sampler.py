"""Choosing the next token on the device, row by row, reproducibly.

Every row has its own settings and its own seed, and its randomness depends on nothing but the seed and the index of the
token: a row of a batch gives the same tokens as the same request alone.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vila_jax.errors import VilaError


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """How one request samples.

    Attributes:
      temperature: 0 takes the most likely token; otherwise logits are divided by it.
      top_k: sample among the k most likely tokens; 0 keeps all.
      top_p: sample among the smallest set of tokens whose probability reaches p; 1 keeps all.
      seed: same seed, same tokens.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        allowed = {
            "temperature": (0 <= self.temperature < float("inf"), "0 (greedy) or a positive number"),
            "top_k": (self.top_k >= 0, "0 (all tokens) or a positive count"),
            "top_p": (0 < self.top_p <= 1, "a probability in (0, 1]"),
            "seed": (0 <= self.seed < 2**63, "a non-negative integer below 2**63"),
        }
        for name, (fits, expected) in allowed.items():
            if not fits:
                raise VilaError(f"got {getattr(self, name)!r}", where=name, fix=f"Give {expected}.")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("temperature", "top_k", "top_p", "seed"),
    meta_fields=("greedy", "filtered"),
)
@dataclasses.dataclass(frozen=True)
class Sampler:
    """The settings of all rows of a batch, as arrays; a change of their values compiles nothing.

    Attributes:
      temperature, top_k, top_p: of every row, `[B]`.
      seed: the two halves of the seed of every row, `[B, 2]`.
      greedy, filtered: static; they leave out work that no row needs: all sampling, and the sort.
    """

    # Leaves of a pytree can be anything while JAX traces, hence no array types here.
    temperature: Any
    top_k: Any
    top_p: Any
    seed: Any
    greedy: bool
    filtered: bool

    @classmethod
    def of(cls, rows: list[SamplingOptions]) -> "Sampler":
        """Stacks the options of the rows."""
        return cls(
            temperature=np.asarray([row.temperature for row in rows], np.float32),
            top_k=np.asarray([row.top_k for row in rows], np.int32),
            top_p=np.asarray([row.top_p for row in rows], np.float32),
            seed=np.asarray([(row.seed >> 32, row.seed & 0xFFFFFFFF) for row in rows], np.uint32),
            greedy=all(row.temperature == 0 for row in rows),
            filtered=any(row.top_k > 0 or row.top_p < 1 for row in rows),
        )

    def __call__(self, logits: Float[Array, "B C"], index: Int[Array, " B"]) -> Int[Array, " B"]:
        """The next token of every row; `index` is the number of tokens that the row has generated so far."""
        best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        if self.greedy:
            return best
        scaled = logits / jnp.maximum(self.temperature, 1e-6)[:, None]
        if self.filtered:
            scaled = keep_likely(scaled, self.top_k, self.top_p)
        # Threefry by name: the same tokens whatever generator the process prefers.
        keys = jax.random.wrap_key_data(self.seed, impl="threefry2x32")
        keys = jax.vmap(jax.random.fold_in)(keys, index)
        drawn = jax.vmap(jax.random.categorical)(keys, scaled).astype(jnp.int32)
        return jnp.where(self.temperature == 0, best, drawn)


def keep_likely(logits: Float[Array, "B C"], top_k: Int[Array, " B"], top_p: Float[Array, " B"]) -> Float[Array, "B C"]:
    """Sets everything outside the top k, and then outside the nucleus of p, to -inf.

    Source: the order and the "smallest set that reaches p" rule of transformers' logits processors.
    """
    order = jnp.argsort(-logits, axis=-1)
    ranked = jnp.take_along_axis(logits, order, axis=-1)
    rank = jnp.arange(logits.shape[-1])[None, :]
    within_k = (top_k[:, None] == 0) | (rank < top_k[:, None])
    ranked = jnp.where(within_k, ranked, -jnp.inf)
    probability = jax.nn.softmax(ranked, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    # Rounded, the sum may reach 1 before the last token.
    within_p = (before < top_p[:, None]) | (top_p[:, None] >= 1)
    ranked = jnp.where(within_p, ranked, -jnp.inf)
    back = jnp.argsort(order, axis=-1)
    return jnp.take_along_axis(ranked, back, axis=-1)
