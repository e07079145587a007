"""The step of a stage as one compiled program, on one device or on a mesh."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array

from train.sharding import Placement
from train.update import Objective, Rules, TrainState, initial_state, update
from train.weights import Flat

Step = Callable[[TrainState, Flat, Mapping[str, Any]], tuple[TrainState, dict[str, Array]]]
"""`step(state, frozen, batch)`; the state is donated, the batch's arrays are `[A, B, …]`."""


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    rules: Rules,
    trained: Flat,
    placement: Placement | None = None,
) -> Step:
    """The jitted step.

    Args:
      objective: what is minimised, over the weights as one dict.
      trained: their abstract values.
      placement: on a mesh, where everything lies; what goes in has to lie there.
    """
    step = functools.partial(update, objective=objective, optimizer=optimizer, rules=rules)
    if placement is None:
        return jax.jit(step, donate_argnums=0)
    state = placement.state(abstract_state(trained, optimizer, rules))
    return jax.jit(step, donate_argnums=0, out_shardings=(state, placement.replicated))


def make_state(
    trained: Flat, optimizer: optax.GradientTransformation, rules: Rules, placement: Placement | None = None
) -> TrainState:
    """The state before the first step, made where it has to lie. Its weights are copies of `trained`."""
    shardings = None if placement is None else placement.state(abstract_state(trained, optimizer, rules))
    return jax.jit(lambda weights: initial_state(weights, optimizer, rules), out_shardings=shardings)(trained)


def abstract_state(
    trained: Flat,
    optimizer: optax.GradientTransformation,
    rules: Rules,
    placement: Placement | None = None,
) -> TrainState:
    """Shapes and shardings of a state: what a saved one is restored into."""
    state = jax.eval_shape(lambda weights: initial_state(weights, optimizer, rules), trained)
    return on_one_device(state) if placement is None else with_shardings(state, placement.state(state))


def on_one_device(tree: Any) -> Any:
    """Abstract values that lie on the first device of this host, wherever those of a checkpoint were."""
    here = SingleDeviceSharding(jax.local_devices()[0])
    return with_shardings(tree, jax.tree.map(lambda _: here, tree))


def with_shardings(tree: Any, shardings: Any) -> Any:
    """Abstract values that say where they lie."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
