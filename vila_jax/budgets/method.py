"""What a budget method is: the class that every page of this room derives from.

A method is a frozen dataclass whose fields *are* its options, so that an instance is a hashable, static argument of
`jax.jit`.  Its work is split between the host, which sees only the size of a picture, and the device, which sees the
scores; what the host knows travels in a `Plan` whose shapes depend on the tile bucket alone.
"""

import abc
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from vila_jax.errors import BudgetError
from vila_jax.nn.config import VisionConfig
from vila_jax.vision.geometry import TileGeometry


class Plan(NamedTuple):
    """What is known about a picture before a pixel is read.

    A pytree: of numpy arrays for one picture, with a leading axis `I` once stacked, of jax arrays in `Method.keep`.

    Attributes:
      candidates: patches that may be kept. Tiles beyond the picture's own hold none.
      order: flat index of the patches in the order in which they become tokens, -1 where unused.
      total: tokens to keep.
      extra: arrays of the method itself, of shapes that depend on the tile bucket alone.
    """

    candidates: Bool[Any, "*I P N"]
    order: Int[Any, "*I M"]
    total: Int[Any, "*I"]
    extra: dict[str, Shaped[Any, "..."]]


class Method(abc.ABC):
    """A way to choose visual tokens. Subclasses are frozen dataclasses; their fields are the options of the spec.

    Attributes:
      name: the name in the spec, `NAME:KEEP`.
    """

    name: ClassVar[str]

    @property
    def full_is_unbudgeted(self) -> bool:
        """Whether keeping everything means to run the model as if there were no budget, newline tokens included."""
        return True

    def intermediates(self, vision: VisionConfig, depth: int) -> dict[str, str]:
        """The tower intermediates that `keep` reads, `{role: name}`, for a tower of which `depth` blocks are built."""
        del vision, depth
        return {}

    def candidates(self, geometry: TileGeometry) -> Bool[np.ndarray, "P N"]:
        """Patches that may be kept: by default those that show the picture, never padding."""
        return geometry.real()

    def order(self, geometry: TileGeometry) -> Int[np.ndarray, " tokens"]:
        """Flat index of the patches in token order; what is kept outside of it vanishes."""
        return geometry.order()

    def extra(self, geometry: TileGeometry, total: int, max_tiles: int, salt: int) -> dict[str, np.ndarray]:
        """The method's own part of the plan of one picture; shapes may depend on `max_tiles` and `N` alone.

        `salt` is any number that names the picture, for methods that draw at random.
        """
        del geometry, total, max_tiles, salt
        return {}

    @abc.abstractmethod
    def keep(self, inputs: Mapping[str, Float[Array, "I P N *width"]], plan: Plan) -> Bool[Array, "I P N"]:
        """The patches to keep, at most `plan.total` of each picture. Runs on the device, inside `jax.jit`.

        Args:
          inputs: `{role: values}` for the roles of `intermediates`, tiles grouped by image. Values of padding tiles
            are arbitrary.
          plan: the stacked plans.
        """


def resolve_block(layer: int, depth: int, option: str) -> int:
    """Index of a tower block; a negative one counts from the end of the built blocks, -1 being the feature block."""
    if not -depth <= layer < depth:
        raise BudgetError(
            f"block {layer} does not exist: {depth} blocks of this vision tower are built",
            where=f"option {option}",
            fix=f"Give a number from 0 to {depth - 1}, or from {-depth} to -1 to count from the end.",
        )
    return layer % depth
