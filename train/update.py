"""One step of training: gradients over one or more parts of a batch, and an update that a bad step does not make."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from train.losses import Sums
from train.weights import GROUPS, Flat, group_of

Objective = Callable[[Flat, Flat, Any], Sums]
"""`objective(trained, frozen, batch)`."""


class TrainState(NamedTuple):
    """What a step changes.

    Attributes:
      trained: float32 weights.
      opt: state of the optimizer.
      average: exponential moving average of the weights; None without.
      step: updates so far, skipped ones included.
      loss: moving average of the loss, by which a spike is told; NaN before the first step.
      skipped: how many steps were skipped, in all and in a row.
    """

    trained: Flat
    opt: Any
    average: Flat | None
    step: Int[Array, ""]
    loss: Float[Array, ""]
    skipped: Int[Array, " 2"]


@dataclasses.dataclass(frozen=True)
class Rules:
    """When a step is not taken, and what is averaged.

    Attributes:
      spike: a loss of more than so many times the moving average is skipped; None for no limit.
      average: decay of the moving average of the weights; None for none.
    """

    spike: float | None = None
    average: float | None = None


def initial_state(trained: Flat, optimizer: optax.GradientTransformation, rules: Rules) -> TrainState:
    """The state before the first step."""
    average = None if rules.average is None else trained
    none = jnp.int32(0), jnp.float32(jnp.nan), jnp.zeros(2, jnp.int32)
    return TrainState(trained, optimizer.init(trained), average, *none)


def gradients(objective: Objective, trained: Flat, frozen: Flat, batch: Any) -> tuple[Sums, Flat]:
    """Sums over a batch whose arrays are `[A, …]`, `A` parts that are looked at one after another, and the gradient of
    the mean loss over all its targets."""

    def loss(trained: Flat, part: Any) -> tuple[Float[Array, ""], Sums]:
        sums = objective(trained, frozen, part)
        return sums.loss, sums

    def add(carry: tuple[Sums, Flat], part: Any) -> tuple[tuple[Sums, Flat], None]:
        (_, sums), grads = jax.value_and_grad(loss, has_aux=True)(trained, part)
        return jax.tree.map(jnp.add, carry, (sums, grads)), None

    parts = jax.tree.leaves(batch)[0].shape[0]
    if parts == 1:
        (_, sums), total = jax.value_and_grad(loss, has_aux=True)(trained, jax.tree.map(lambda x: x[0], batch))
    else:
        zero = Sums(jnp.float32(0), jnp.int32(0), jnp.int32(0)), jax.tree.map(jnp.zeros_like, trained)
        (sums, total), _ = jax.lax.scan(add, zero, batch)
    targets = jnp.maximum(sums.targets, 1).astype(jnp.float32)
    return sums, jax.tree.map(lambda g: g / targets.astype(g.dtype), total)


def update(
    state: TrainState,
    frozen: Flat,
    batch: Any,
    *,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    rules: Rules,
) -> tuple[TrainState, dict[str, Array]]:
    """One step; to be jitted with `state` donated.

    A step whose loss or gradient is not finite, or whose loss is a spike, changes nothing but the counts.

    Returns:
      The new state, and metrics: `loss`, `accuracy` (of the targets' tokens), `targets`, `grad_norm` and one
      `grad_norm/GROUP` for each group, `skipped` and `skipped_in_a_row`.
    """
    sums, grads = gradients(objective, state.trained, frozen, batch)
    loss = sums.loss / jnp.maximum(sums.targets, 1)
    norm = optax.tree.norm(grads)
    good = jnp.isfinite(loss) & jnp.isfinite(norm) & (sums.targets > 0)
    if rules.spike is not None:
        good &= jnp.isnan(state.loss) | (loss <= rules.spike * state.loss)
    updates, opt = optimizer.update(grads, state.opt, state.trained)
    trained = optax.apply_updates(state.trained, updates)
    average = state.average
    if average is not None and rules.average is not None:
        decay = rules.average
        average = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, average, trained)
    trained, opt, average = jax.tree.map(
        lambda new, old: jnp.where(good, new, old), (trained, opt, average), (state.trained, state.opt, state.average)
    )
    seen = jnp.where(jnp.isnan(state.loss), loss, 0.95 * state.loss + 0.05 * loss)
    skipped = jnp.where(good, state.skipped * jnp.array([1, 0]), state.skipped + 1)
    new = TrainState(trained, opt, average, state.step + 1, jnp.where(good, seen, state.loss), skipped)
    metrics = {
        "loss": loss,
        "accuracy": sums.right / jnp.maximum(sums.targets, 1),
        "targets": sums.targets,
        "grad_norm": norm,
        "skipped": skipped[0],
        "skipped_in_a_row": skipped[1],
    }
    return new, metrics | _norms(grads)


def _norms(grads: Flat) -> dict[str, Array]:
    """Norm of the gradient of every group that is trained."""
    by_group = {group: {n: g for n, g in grads.items() if group_of(n) == group} for group in GROUPS}
    return {f"grad_norm/{group}": optax.tree.norm(own) for group, own in by_group.items() if own}
