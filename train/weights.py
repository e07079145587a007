"""The weights of a model in training: flat, by their dotted names, in the groups that a stage trains or leaves alone.

    tower       vision_tower.*
    projector   projector.*, newline
    decoder     decoder.*
    scorer      scorer.*, if the model has one
    heads       heads.*, classifiers that live beside the model while it is trained, see `train/scenes/heads.py`

The blocks of tower and decoder may be stacked: then `decoder.layers.*.attn.q.weight`, with a star, holds that weight of
all layers, `[L, out, in]`.

Gradients are taken with respect to what is trained and nothing else, so that no gradient of a frozen weight is ever
built: a frozen tower is run forward only, a frozen decoder under a trained projector hands gradients of activations on.
"""

import dataclasses
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from vila_jax.errors import ConfigError
from vila_jax.nn.params import Axes, dotted, logical_axes
from vila_jax.nn.stacked import STAR, Execution, Stacked, stack_arrays
from vila_jax.nn.vlm import VLM

HEADS = "heads"

GROUPS = {
    "tower": ("vision_tower",),
    "projector": ("projector", "newline"),
    "decoder": ("decoder",),
    "scorer": ("scorer",),
    HEADS: (HEADS,),
}
LORA = "lora"

Flat = dict[str, jax.Array]


def group_of(name: str) -> str:
    """The group of a weight by its dotted name."""
    head = name.split(".", maxsplit=1)[0]
    return next(group for group, heads in GROUPS.items() if head in heads)


def is_trained(name: str, trained: Collection[str], low_rank: Collection[str] = ()) -> bool:
    """Whether a weight is trained.

    Args:
      trained: groups.
      low_rank: those among them of which only the low-rank additions are.
    """
    group = group_of(name)
    return group in trained and (group not in low_rank or LORA in name.split("."))


def split(weights: Flat, trained: Collection[str], low_rank: Collection[str] = ()) -> tuple[Flat, Flat]:
    """What is trained, and what is not; see `is_trained`.

    Raises:
      ConfigError: an unknown group, or nothing is trained.
    """
    if unknown := sorted(set(trained) - set(GROUPS)):
        raise ConfigError(f"unknown group {unknown[0]!r}", where="train", fix=f"There are {', '.join(GROUPS)}.")
    chosen = {name: value for name, value in weights.items() if is_trained(name, trained, low_rank)}
    if not chosen:
        raise ConfigError("nothing is trained", where="train", fix="Name at least one group with weights of its own.")
    return chosen, {name: value for name, value in weights.items() if name not in chosen}


@dataclasses.dataclass(frozen=True)
class Structure:
    """A model without its weights.

    Attributes:
      graphdef: the structure proper.
      paths: dotted name of every weight -> its path in the module.
      axes: dotted name -> logical axes, for sharding; None for the axis of layers.
      layers: dotted name of every stacked weight, a star in it -> how many layers it holds.
    """

    graphdef: nnx.GraphDef
    paths: dict[str, tuple[Any, ...]]
    axes: dict[str, Axes]
    layers: dict[str, int]

    @classmethod
    def of(
        cls,
        model: VLM,
        *,
        stacked: bool = False,
        tower: Execution | None = None,
        decoder: Execution | None = None,
    ) -> tuple["Structure", Flat]:
        """The structure of a model (which may be abstract), and its weights. The model stays as it is.

        Args:
          stacked: whether the blocks of tower and decoder become one each, see `vila_jax.nn.stacked`.
          tower, decoder: how their blocks are run.

        Raises:
          ConfigError: blocks that cannot be stacked.
        """
        own = nnx.merge(*nnx.split(model))
        layers: dict[str, int] = {}
        for name, execution in (("vision_tower", tower), ("decoder", decoder)):
            part = getattr(own, name)
            part.execution = execution or Execution()
            if stacked and len(part.layers):
                part.layers = Stacked(part.layers)
                layers[f"{name}.layers.{STAR}."] = len(part.layers)
        graphdef, state = nnx.split(own)
        flat = [(dotted(path), path, leaf) for path, leaf in nnx.to_flat_state(state)]
        depths = {name: depth for name, _, _ in flat for prefix, depth in layers.items() if name.startswith(prefix)}
        structure = cls(graphdef, {name: path for name, path, _ in flat}, logical_axes(state), depths)
        return structure, {name: leaf.get_value() for name, _, leaf in flat}

    def stack(self, weights: Flat) -> Flat:
        """Weights by the names of an unrolled model, as this structure wants them. The inverse of `unstack`.

        To hold no weight twice, `weights` is emptied as it goes.
        """
        names = {name: [name.replace(STAR, str(i)) for i in range(self.layers.get(name, 1))] for name in self.paths}
        return {
            name: stack_arrays([weights.pop(own) for own in parts]) if name in self.layers else weights.pop(name)
            for name, parts in names.items()
            if parts[0] in weights
        }

    def unstack(self, weights: Flat) -> Flat:
        """Weights (or their gradients, or numpy copies of them) by the names of an unrolled model."""
        flat: Flat = {}
        for name, value in weights.items():
            if name in self.layers:
                flat |= {name.replace(STAR, str(i)): value[i] for i in range(self.layers[name])}
            else:
                flat[name] = value
        return flat

    def model(self, weights: Flat, dtype: DTypeLike | None = None) -> VLM:
        """The model with these weights, computing in `dtype`; by default in that of the weights."""
        nested: dict[Any, Any] = {}
        for name, value in weights.items():
            *parents, last = self.paths[name]
            place = nested
            for key in parents:
                place = place.setdefault(key, {})
            place[last] = value if dtype is None else value.astype(jnp.dtype(dtype))
        return nnx.merge(self.graphdef, nested)
