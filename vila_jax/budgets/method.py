"""What a budget method is: the classes that every page of this room derives from.

A method is a frozen dataclass whose fields *are* its options, so that an instance is a hashable, static argument of
`jax.jit`. It works at one stage of the road:

    Method            name, stage, options
    └ TokenMethod     between tower and decoder: which tokens a picture has           choose -> Selection
      └ Selector      ... that are patches: which of them are kept                    keep -> mask
    └ DecoderMethod   inside the decoder: see `vila_jax.budgets.decoder_method`

A `TokenMethod`'s work is split between the host, which sees only the size of a picture, and the device, which sees
scores and features; what the host knows travels in a `Plan` whose shapes depend on the tile bucket alone.
"""

import abc
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from vila_jax.budgets.select import Selection, compact
from vila_jax.errors import BudgetError
from vila_jax.nn.config import ProjectorConfig, VisionConfig
from vila_jax.vision.geometry import TileGeometry

Stage = Literal["picture", "tower", "tokens", "decoder"]
"""Where on the road a method works, in the order of the road."""


class Plan(NamedTuple):
    """What is known about a picture before a pixel is read.

    A pytree: of numpy arrays for one picture, with a leading axis `I` once stacked, of jax arrays on the device.

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
    """A way to spend fewer visual tokens. Subclasses are frozen dataclasses; their fields are the options of the spec.

    Attributes:
      name: the name in the spec, `NAME:KEEP`.
      stage: where it works.
    """

    name: ClassVar[str]
    stage: ClassVar[Stage]

    @property
    def full_is_unbudgeted(self) -> bool:
        """Whether keeping everything means to run the model as if there were no budget, newline tokens included."""
        return True


class TokenMethod(Method):
    """Makes the tokens of a picture from what the tower says of its patches."""

    stage: ClassVar[Stage] = "tokens"

    def intermediates(self, vision: VisionConfig, depth: int) -> dict[str, str]:
        """What `choose` reads, `{role: name}`, for a tower of which `depth` blocks are built.

        Names are intermediates of the tower (`cls_attention/i`, `received_attention/i`, `keys/i`, ...), `features`
        (what the projector takes, one vector per cell), `projected` (what the decoder would read), or `class_token`
        (its feature, which a method may then merge: see `Selection`).
        """
        del vision, depth
        return {}

    def check(self, vision: VisionConfig, projector: ProjectorConfig) -> None:
        """Refuses models on which the method means nothing.

        Raises:
          BudgetError: with the reason.
        """
        del vision, projector

    def total(self, asked: int, geometry: TileGeometry) -> int:
        """Tokens that a picture really has when `asked` are asked for; never more."""
        del geometry
        return asked

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
    def choose(self, inputs: Mapping[str, Float[Array, "I P N *width"]], plan: Plan, slots: int) -> Selection:
        """The tokens of every picture, at most `plan.total` of each. Runs on the device, inside `jax.jit`.

        Args:
          inputs: `{role: values}` for the roles of `intermediates`, tiles grouped by image: attention summed over heads
            `[I, P, N]`, keys `[I, P, N, heads, H]`, features and projected tokens `[I, P, N, D]`, class tokens
            `[I, P, 1, D]`. Values of padding tiles are arbitrary.
          plan: the stacked plans.
          slots: `K`, static.
        """


class Selector(TokenMethod):
    """Keeps some of the patches as they are, in token order."""

    @abc.abstractmethod
    def keep(self, inputs: Mapping[str, Float[Array, "I P N *width"]], plan: Plan) -> Bool[Array, "I P N"]:
        """The patches to keep, at most `plan.total` of each picture; for `inputs` and `plan` see `choose`."""

    def choose(self, inputs: Mapping[str, Float[Array, "I P N *width"]], plan: Plan, slots: int) -> Selection:
        return compact(self.keep(inputs, plan), plan.order, slots)


def resolve_block(layer: int, depth: int, option: str) -> int:
    """Index of a tower block; a negative one counts from the end of the built blocks, -1 being the feature block."""
    if not -depth <= layer < depth:
        raise BudgetError(
            f"block {layer} does not exist: {depth} blocks of this vision tower are built",
            where=f"option {option}",
            fix=f"Give a number from 0 to {depth - 1}, or from {-depth} to -1 to count from the end.",
        )
    return layer % depth
