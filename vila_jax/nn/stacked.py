"""The blocks of a transformer in training: as one block that is run many times, with less kept for the backward pass.

    blocks      layers.0.fc1.weight [o, i], layers.1.fc1.weight [o, i], …     unrolled: one program for each
    Stacked     layers.*.fc1.weight [L, o, i]                                 a scan: one program for all

A scan compiles in the time of one block. Inference stays unrolled: there a scan copies every slice at every step.

What a block leaves for the backward pass, by the name of its policy:

    none      everything that its derivative reads
    minimal   products with weights; attention, norms and activations are computed again
    full      its input alone; the whole block is computed again
    offload   as `minimal`, but held in the host's memory, not the device's
"""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Shaped

from vila_jax.errors import ConfigError
from vila_jax.nn.products import ROUNDED

Remat = Literal["none", "minimal", "full", "offload"]
Result = TypeVar("Result")
States = Float[Array, "rows tokens width"]

STAR = "*"
"""Stands in names of weights for the number of the layer."""


@dataclasses.dataclass(frozen=True)
class Execution:
    """How the blocks of a transformer are run; changes no result but by rounding.

    Attributes:
      remat: what is kept for the backward pass, see above.
      sharding: how the states between two blocks lie on a mesh; None leaves that to XLA.
      table: likewise the table of embeddings while rows are read from it. If it stayed split along their width,
        XLA would make the embeddings of the whole batch on every device.
    """

    remat: Remat = "none"
    sharding: NamedSharding | None = None
    table: NamedSharding | None = None

    def wrap(self, function: Callable[..., Result], *, in_scan: bool = False) -> Callable[..., Result]:
        """The function, under the policy."""
        if self.remat == "none":
            return function
        policies = jax.checkpoint_policies
        policy = {
            "minimal": policies.save_from_both_policies(_products, policies.save_only_these_names(ROUNDED)),
            "full": policies.nothing_saveable,
            "offload": policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
        }[self.remat]
        # The bodies of a scan need no protection from common subexpressions: forward and backward are two loops.
        return jax.checkpoint(function, policy=policy, prevent_cse=not in_scan)

    def place(self, x: States) -> States:
        """States between two blocks, where they belong."""
        return x if self.sharding is None else jax.lax.with_sharding_constraint(x, self.sharding)

    def place_table(self, table: Shaped[Array, "C D"]) -> Shaped[Array, "C D"]:
        """The table of embeddings, where it is read."""
        return table if self.table is None else jax.lax.with_sharding_constraint(table, self.table)


def _products(primitive: Any, *operands: Any, **parameters: Any) -> bool:
    """Whether this is a product with a weight, to be kept; not in float32 what is rounded next, and kept then."""
    kept: bool = jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *operands, **parameters)
    return kept and parameters["preferred_element_type"] in (None, operands[0].dtype)


class Stacked(nnx.Module):
    """Blocks of equal weights as one block, whose weights have an axis of layers in front.

    It stands in the place of a list of blocks. Indexing gives a block of its own, which copies its weights;
    `run_blocks` does not. Blocks may differ in what is no weight, such as their windows: those between two changes are
    run by one scan.

    Raises:
      ConfigError: blocks whose weights differ in name or shape, as some kinds of pruning leave them.
    """

    def __init__(self, blocks: Sequence[nnx.Module]):
        graphdefs, states = zip(*(nnx.split(block) for block in blocks), strict=True)
        _check_equal(states)
        stacked = jax.tree.map(lambda *layers: stack_arrays(layers), *(nnx.to_pure_dict(state) for state in states))
        block = nnx.merge(graphdefs[0], stacked)
        for _, parameter in nnx.iter_graph(block):
            if isinstance(parameter, nnx.Variable):
                parameter.set_metadata("logical_axes", (None, *parameter.get_metadata()["logical_axes"]))
        setattr(self, STAR, block)
        self.runs = tuple((graphdef, len(list(run))) for graphdef, run in itertools.groupby(graphdefs))

    def __len__(self) -> int:
        return sum(length for _, length in self.runs)

    def __getitem__(self, layer: int) -> Any:
        state = nnx.to_pure_dict(nnx.state(getattr(self, STAR)))
        number = range(len(self))[layer]
        return nnx.merge(self._graphdefs()[number], jax.tree.map(lambda x: x[number], state))

    def __iter__(self) -> Iterator[Any]:
        return (self[layer] for layer in range(len(self)))

    def scan(
        self,
        apply: Callable[[Any, States], States],
        x: States,
        layers: range,
        execution: Execution,
    ) -> States:
        """See `run_blocks`."""
        weights = nnx.to_pure_dict(nnx.state(getattr(self, STAR)))
        start = layers.start
        for graphdef, run in itertools.groupby(self._graphdefs()[layers.start : layers.stop]):
            stop = start + len(list(run))
            own = (
                weights if stop - start == len(self) else jax.tree.map(operator.itemgetter(slice(start, stop)), weights)
            )
            body = functools.partial(_layer, graphdef, apply, execution)
            x, _ = jax.lax.scan(execution.wrap(body, in_scan=True), x, own)
            start = stop
        return x

    def _graphdefs(self) -> list[nnx.GraphDef]:
        return [graphdef for graphdef, length in self.runs for _ in range(length)]


def _layer(
    graphdef: nnx.GraphDef,
    apply: Callable[[Any, States], States],
    execution: Execution,
    x: States,
    weights: dict[Any, Any],
) -> tuple[States, None]:
    """One turn of the scan."""
    return execution.place(apply(nnx.merge(graphdef, weights), x)), None


def _check_equal(states: Sequence[nnx.State]) -> None:
    shapes = [{path: leaf.get_value().shape for path, leaf in nnx.to_flat_state(state)} for state in states]
    for layer, own in enumerate(shapes):
        if own != shapes[0]:
            raise ConfigError(
                f"the weights of blocks 0 and {layer} differ in shape, so they cannot be stacked",
                where="compute.scan",
                fix="Set it to False.",
            )


def stack_arrays(layers: Sequence[Any]) -> Any:
    """Arrays (of JAX, of numpy, or `jax.ShapeDtypeStruct`s) of equal shape as one, with an axis in front."""
    first = layers[0]
    if isinstance(first, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((len(layers), *first.shape), first.dtype)
    return np.stack(layers) if isinstance(first, np.ndarray) else jnp.stack(layers)


Blocks = Stacked | Sequence[Any]


def run_blocks(
    blocks: Blocks,
    apply: Callable[[Any, States], States],
    x: States,
    layers: range,
    execution: Execution,
) -> States:
    """Runs some of the blocks, one after another.

    Args:
      apply: what becomes of the states in a block: `apply(block, x)`.
      x: what the first of them reads.
      layers: which blocks, without gaps.
    """
    x = execution.place(x)
    if isinstance(blocks, Stacked):
        return blocks.scan(apply, x, layers, execution)
    for layer in layers:
        with jax.named_scope(f"layer_{layer}"):
            x = execution.place(execution.wrap(functools.partial(apply, blocks[layer]))(x))
    return x


def run_block(
    blocks: Blocks,
    apply: Callable[[Any, States], tuple[States, Result]],
    x: States,
    layer: int,
    execution: Execution,
) -> tuple[States, Result]:
    """Runs one block by itself, which then may hand out more than its states."""
    with jax.named_scope(f"layer_{layer}"):
        x, more = execution.wrap(functools.partial(apply, blocks[layer]))(execution.place(x))
    return execution.place(x), more
