"""The weights of a model in training: flat, by their dotted names, in the groups that a stage trains or leaves alone.

    tower       vision_tower.*
    projector   projector.*, newline
    decoder     decoder.*
    scorer      scorer.*, if the model has one
    heads       heads.*, classifiers that live beside the model while it is trained, see `train/scenes/heads.py`

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
      axes: dotted name -> logical axes, for sharding.
    """

    graphdef: nnx.GraphDef
    paths: dict[str, tuple[Any, ...]]
    axes: dict[str, Axes]

    @classmethod
    def of(cls, model: VLM) -> tuple["Structure", Flat]:
        """The structure of a model (which may be abstract), and its weights."""
        graphdef, state = nnx.split(model)
        flat = [(dotted(path), path, leaf) for path, leaf in nnx.to_flat_state(state)]
        structure = cls(graphdef, {name: path for name, path, _ in flat}, logical_axes(state))
        return structure, {name: leaf.get_value() for name, _, leaf in flat}

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
