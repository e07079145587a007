"""What a budget method is: the classes that every page of this room derives from.

A method is a frozen dataclass whose fields *are* its options, so that an instance is a hashable, static argument of
`jax.jit`. It works at one stage of the road:

    Method            name, stage, options
    ├ TowerMethod     inside the tower: tokens become fewer from block to block       reduce -> Tokens
    ├ TokenMethod     between tower and decoder: which tokens a picture has           choose -> Selection
    │ └ Selector      ... that are patches: which of them are kept                    keep -> mask
    │   └ TileSelector    ... tile by tile, every tile having its share               keep_in_tiles -> mask
    └ DecoderMethod   inside the decoder, see `vila_jax.budgets.decoder_method`

A `TokenMethod`'s work is split between the host, which sees only the size of a picture, and the device, which sees
scores and features; what the host knows travels in a `Plan` whose shapes depend on the tile bucket alone.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from vila_jax.budgets.allocate import largest_remainder
from vila_jax.budgets.select import Selection, compact
from vila_jax.errors import BudgetError
from vila_jax.nn.config import VisionConfig, VLMConfig
from vila_jax.nn.tower_tokens import Tokens
from vila_jax.vision.geometry import TileGeometry

Stage = Literal["picture", "tower", "tokens", "decoder"]
"""Where on the road a method works, in the order of the road."""

Positions = Literal["original", "renumbered"]
"""Rotary positions of the tokens that are left: those that they have without the method, or counted anew."""


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


class TowerMethod(Method):
    """Makes tokens fewer inside the vision tower; of every tile equally many, since the tower is one program.

    Attributes:
      merges: whether tokens are made of several patches, so that they have no position of their own.
      positions: of the tokens that are left; an option (a field) of methods that do not merge, see `Selector`.
    """

    stage: ClassVar[Stage] = "tower"
    merges: ClassVar[bool] = False
    positions: Positions = "renumbered"

    @abc.abstractmethod
    def schedule(self, patches: int, kept: int, depth: int) -> tuple[int, ...]:
        """Tokens that are left of a tile of `patches` behind each of `depth` blocks, `kept` behind the last.

        Raises:
          BudgetError: a block that an option names does not exist, or no schedule leaves so few.
        """

    @property
    def shortens(self) -> bool:
        """Whether tokens that are gone are really not computed any more."""
        return True

    @abc.abstractmethod
    def reduce(self, block: int, tokens: Tokens, keys: Float[Array, "R S heads H"], left: tuple[int, ...]) -> Tokens:
        """The tokens that go on to the MLP of a block: a `vila_jax.nn.tower_tokens.Reduction`, given the schedule."""


class TokenMethod(Method):
    """Makes the tokens of a picture from what the tower says of its patches.

    Attributes:
      nested: promises that what a smaller budget keeps of a tile is among what a larger one keeps of it, wherever the
        larger one does not give that tile less.
      after_tower: whether the method may follow a step inside the tower. Which candidates that leaves is known on the
        device alone: `choose` must take them from its `plan`, and read nothing of the tower but the features.
      merges: whether tokens are made of several patches, so that they have no position of their own.
      positions: of the tokens; an option (a field) of methods that do not merge, see `Selector`.
    """

    stage: ClassVar[Stage] = "tokens"
    merges: ClassVar[bool] = False
    positions: Positions = "renumbered"
    nested: ClassVar[bool] = False
    after_tower: ClassVar[bool] = False

    def intermediates(self, vision: VisionConfig, depth: int) -> dict[str, str]:
        """What `choose` reads, `{role: name}`, for a tower of which `depth` blocks are built.

        Names are intermediates of the tower (`cls_attention/i`, `received_attention/i`, `keys/i`, ...), `features`
        (what the projector takes, one vector per cell), `projected` (what the decoder would read), `learned_score`
        (what the model's token scorer gives each cell), or `class_token` (its feature, which a method may then merge:
        see `Selection`).
        """
        del vision, depth
        return {}

    def check(self, config: VLMConfig) -> None:
        """Refuses models on which the method means nothing.

        Raises:
          BudgetError: with the reason.
        """
        del config

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
            and learned scores `[I, P, N]`, keys `[I, P, N, heads, H]`, features and projected tokens `[I, P, N, D]`,
            class tokens `[I, P, 1, D]`. Values of padding tiles are arbitrary.
          plan: the stacked plans.
          slots: `K`, static.
        """


@dataclasses.dataclass(frozen=True)
class Selector(TokenMethod):
    """Keeps some of the patches as they are, in token order.

    Options:
      positions: `renumbered` counts the tokens of the shortened prompt through, as the published methods do.
        `original` leaves every token, text too, the rotary position that it has without the budget, newline tokens and
        what is written between tiles counted: distances on the picture stay what the decoder was trained with (GAP,
        arXiv 2506.21873, restores most of what pruning takes from grounding so). Both need the same memory, but with
        `original` the prompt without the budget has to fit the context.
    """

    positions: Positions = "renumbered"

    @abc.abstractmethod
    def keep(self, inputs: Mapping[str, Float[Array, "I P N *width"]], plan: Plan) -> Bool[Array, "I P N"]:
        """The patches to keep, at most `plan.total` of each picture; for `inputs` and `plan` see `choose`."""

    def choose(self, inputs: Mapping[str, Float[Array, "I P N *width"]], plan: Plan, slots: int) -> Selection:
        return compact(self.keep(inputs, plan), plan.order, slots)


class TileSelector(Selector):
    """Keeps of every tile its share of the tokens: in proportion to what the tile shows of the picture."""

    def total(self, asked: int, geometry: TileGeometry) -> int:
        tiles = int(self.candidates(geometry).any(axis=1).sum())
        if asked < tiles:
            raise BudgetError(
                f"{asked} token(s) cannot be shared among the {tiles} tiles of a picture",
                where=f"budget method {self.name!r}",
                fix=f"Ask for at least {tiles} tokens, or use a method that sees a picture as one, such as divprune.",
            )
        return asked

    @abc.abstractmethod
    def keep_in_tiles(
        self,
        inputs: Mapping[str, Float[Array, "I P N *width"]],
        candidates: Bool[Array, "I P N"],
        counts: Int[Array, "I P"],
    ) -> Bool[Array, "I P N"]:
        """The patches to keep: exactly `counts` of the candidates of every tile; for `inputs` see `choose`."""

    def keep(self, inputs: Mapping[str, Float[Array, "I P N *width"]], plan: Plan) -> Bool[Array, "I P N"]:
        room = plan.candidates.sum(-1, dtype=jnp.int32)
        counts = largest_remainder(room.astype(jnp.float32), plan.total, room)
        return self.keep_in_tiles(inputs, plan.candidates, counts)


def class_attention(vision: VisionConfig, depth: int, layer: int, option: str) -> str:
    """Name of the attention of the class token in block `layer`, or of what stands in its place without one."""
    kind = "cls_attention" if vision.has_class_token else "received_attention"
    return f"{kind}/{resolve_block(layer, depth, option)}"


def check_part(value: float, option: str, meaning: str, method: str) -> None:
    """Refuses an option that is a part of a whole and is not in [0, 1]."""
    if not 0 <= value <= 1:
        raise BudgetError(
            f"{option} is {value}, but is {meaning}",
            where=f"budget method {method!r}",
            fix="Give a number from 0 to 1.",
        )


def resolve_block(layer: int, depth: int, option: str) -> int:
    """Index of a tower block; a negative one counts from the end of the built blocks, -1 being the feature block."""
    if not -depth <= layer < depth:
        raise BudgetError(
            f"block {layer} does not exist: {depth} blocks of this vision tower are built",
            where=f"option {option}",
            fix=f"Give a number from 0 to {depth - 1}, or from {-depth} to -1 to count from the end.",
        )
    return layer % depth
