"""The loop that trains the networks of the studies."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

Split = tuple[nnx.GraphDef, nnx.State]
Loss = Callable[[Any, Any, Array], Float[Array, ""]]
Step = Callable[[nnx.State, Any, Any, Array], tuple[nnx.State, Any]]


def fit(model: nnx.Module, loss: Loss, batches: Iterator[Any], *, steps: int, learning_rate: float) -> Split:
    """Trains by AdamW: linear warm-up over a tenth of the steps, cosine decay, clipped gradients.

    Args:
      loss: of a model, a batch and a random key of the step.
      batches: at least `steps` of them.

    Returns:
      The module, split.
    """
    graph, state = nnx.split(model)
    rule = optimizer(steps, learning_rate)
    step = jax.jit(update_step(graph, loss, rule), donate_argnums=(0, 1))
    memory = rule.init(state)
    for key in jax.random.split(jax.random.key(0), steps):
        state, memory = step(state, memory, next(batches), key)
    return graph, jax.block_until_ready(state)


def optimizer(steps: int, learning_rate: float) -> optax.GradientTransformation:
    """The rule of `fit`; only matrices decay."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, max(1, steps // 10), steps, learning_rate / 100)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.05, mask=_are_matrices))


def update_step(graph: nnx.GraphDef, loss: Loss, rule: optax.GradientTransformation) -> Step:
    """One step of training, to be compiled: new parameters and a new memory of the optimizer."""

    def step(state: nnx.State, memory: Any, batch: Any, key: Array) -> tuple[nnx.State, Any]:
        gradients = jax.grad(lambda state: loss(nnx.merge(graph, state), batch, key))(state)
        updates, memory = rule.update(gradients, memory, state)
        return optax.apply_updates(state, updates), memory

    return step


def _are_matrices(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim > 1, params)


def epochs(count: int, batch: int, seed: int) -> Iterator[Int[np.ndarray, " B"]]:
    """Indices of full batches, every epoch in a new order, without end."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(count)
        for start in range(0, count - batch + 1, batch):
            yield order[start : start + batch]


def over_batches(function: Callable[..., Any], batch: int, *arrays: np.ndarray) -> Any:
    """Applies a compiled function to slices of at most `batch` rows, and joins what it returns along the rows."""
    parts = [function(*(a[i : i + batch] for a in arrays)) for i in range(0, len(arrays[0]), batch)]
    return jax.tree.map(lambda *own: np.concatenate([np.asarray(part) for part in own]), *parts)
