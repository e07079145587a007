"""How the pictures of a packed row become visual tokens, under one budget.

The visual slots of a row point into a table of its visual tokens. Mostly that table goes tile by tile, and a tile is
all that there is to say of a picture. Under a budget, and where pictures are seen at several scales, it goes picture by
picture, and a row has arrays of its pictures beside those of its tiles:

    first_tile      [I]               the row's tile with which a picture begins
    plan.*          [I, …]            what the host knows of the choice, see `vila_jax.budgets.Plan`
    scale_index     [I, B, P, S, W]   how blocks are put together, see `vila_jax.nn.scales`
    shown           [R, N]            a tile's: which patches show a picture, for steps inside the tower
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from train.data.packing import Axis
from vila_jax.budgets import Budget, Plan, make_plan
from vila_jax.budgets.check import check_budget
from vila_jax.errors import BudgetError
from vila_jax.infer.layout import Planner
from vila_jax.infer.pictures import limit_of
from vila_jax.infer.vision import Spec
from vila_jax.vision.geometry import TileGeometry
from vila_jax.vision.preprocess import Limit, ProcessedImage

NEWLINE = -2
"""In `source`: the embedding of a newline, which some models put behind every row of a picture."""

PLAN = "plan."
"""In front of the names of a plan's arrays; those of its method have `plan.extra.` there."""


@dataclasses.dataclass(frozen=True)
class Visual:
    """One model under one budget.

    Attributes:
      planner: of the model.
      budget: None for all visual tokens.

    Raises:
      BudgetError: the model cannot meet the budget, or it cannot be trained under.
    """

    planner: Planner
    budget: Budget | None = None

    def __post_init__(self):
        budget = self.planner.effective(self.budget)
        object.__setattr__(self, "budget", budget)
        if budget is None:
            return
        check_budget(budget, self.planner.config.vlm)
        if self.planner.keeps_positions(budget):
            raise BudgetError(
                "packed rows number the tokens of every sample anew",
                where=f"budget {str(budget)!r}",
                fix="Train with renumbered positions, which is the default.",
            )
        self.planner.spec(budget, self.planner.max_tiles)  # refuses more tokens than any picture has
        if (step := budget.step("decoder")) is not None:
            raise BudgetError(
                f"{step.method} shortens whole prompts inside the decoder, and a packed row holds several samples, "
                "each of which would have to be shortened by itself",
                where=f"budget {str(budget)!r}",
                fix="Train under a budget in front of the decoder, such as hired:0.2; this one needs no training.",
            )

    @functools.cached_property
    def spec(self) -> Spec:
        """The static part of what the device does."""
        return self.planner.spec(self.budget, self.planner.max_tiles)

    @property
    def by_picture(self) -> bool:
        """Whether the table goes picture by picture."""
        return self.spec.step is not None or self._has_scales

    @property
    def tokens_per_unit(self) -> int:
        """Rows of the table that a tile, or a picture, takes."""
        if self.spec.step is not None:
            return self.spec.slots
        return self.planner.tokens_per_tile * (self.planner.max_tiles if self._has_scales else 1)

    @property
    def fewest_tiles(self) -> int:
        """Tiles of a picture at the least."""
        pictures = self.planner.config.pictures
        fixed = pictures is not None and pictures.mode == "s2"
        return self.planner.max_tower_tiles if fixed else 1

    @property
    def limit(self) -> Limit | None:
        """Visual tokens that a picture may have, where the budget shows it smaller."""
        return limit_of(self.budget)

    def segments(self, geometry: TileGeometry) -> list[np.ndarray]:
        """For every placeholder of a picture, the rows of its own part of the table; `NEWLINE` for newlines."""
        if self.spec.step is not None:
            return [np.arange(self.planner.visual_count(geometry, self.budget), dtype=np.int32)]
        return self.planner.segment_tokens(geometry, self.planner.newline_index(self.budget, NEWLINE))

    def rows_of(self, geometry: TileGeometry) -> int:
        """Rows of the table that a picture takes."""
        return self.tokens_per_unit * (1 if self.by_picture else geometry.num_tiles)

    def of_tiles(self, image: ProcessedImage) -> dict[str, np.ndarray]:
        """What is said of the tiles of a picture beside their pixels, `[P, …]` each."""
        return {} if self.spec.reduction is None else {"shown": image.geometry.real()}

    def of_picture(self, image: ProcessedImage, first_tile: int, salt: int) -> dict[str, np.ndarray]:
        """What is said of a picture.

        Args:
          first_tile: of the tiles of its sample.
          salt: names the picture, for methods that draw at random.

        Raises:
          BudgetError: more tokens are asked for than it has.
        """
        if not self.by_picture:
            return {}
        arrays = {"first_tile": np.asarray(first_tile, np.int32)}
        step, planner = self.spec.step, self.planner
        if step is not None:
            tower = planner.tower_step(self.budget)
            arrays |= plan_arrays(make_plan(step, image.geometry, planner.max_tiles, salt, tower))
        if image.scales is not None:
            index = self._no_scales()
            index[: len(image.scales.index)] = image.scales.index
            arrays["scale_index"] = index
        return arrays

    @functools.cached_property
    def nothing(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The arrays of no tiles and of no pictures: names, shapes and types are those of any."""
        patches = self.planner.config.vlm.vision.num_patches
        tiles = {} if self.spec.reduction is None else {"shown": np.zeros((0, patches), bool)}
        if not self.by_picture:
            return tiles, {}
        one: dict[str, np.ndarray] = {"first_tile": np.asarray(0, np.int32)}
        if (step := self.spec.step) is not None:
            most, per_tile = self.planner.max_tiles, self.planner.tokens_per_tile
            side = math.isqrt(per_tile)
            extra = step.token_method.extra(TileGeometry(side, (side, side)), 1, most, 0)
            candidates = np.zeros((most, per_tile), bool)
            order = np.zeros(most * per_tile, np.int32)
            one |= plan_arrays(Plan(candidates, order, np.asarray(0, np.int32), extra))
        if self._has_scales:
            one["scale_index"] = self._no_scales()
        return tiles, {name: value[None][:0] for name, value in one.items()}

    @property
    def axes(self) -> dict[str, Axis]:
        """What the leading axes of these arrays count."""
        tiles, pictures = self.nothing
        return dict.fromkeys(tiles, Axis.TILES) | dict.fromkeys(pictures, Axis.PICTURES)

    @property
    def _has_scales(self) -> bool:
        return self.planner.config.vlm.num_scales > 1

    def _no_scales(self) -> np.ndarray:
        """The table of a picture without a block, `[B, P, S, W]`."""
        pictures = self.planner.config.pictures
        assert pictures is not None
        shape = pictures.block_side**2, len(pictures.scales), pictures.scale_window
        return np.full((self.planner.max_tiles, *shape), -1, np.int32)


def plan_arrays(plan: Plan) -> dict[str, np.ndarray]:
    """A plan as arrays by name; `plan_of` is the way back."""
    own = {"candidates": plan.candidates, "order": plan.order, "total": plan.total}
    extra = {f"extra.{name}": value for name, value in plan.extra.items()}
    return {PLAN + name: np.asarray(value) for name, value in (own | extra).items()}


def plan_of(arrays: Mapping[str, Any]) -> Plan:
    """The plan among the arrays of a row or a batch."""
    own = {name.removeprefix(PLAN): value for name, value in arrays.items() if name.startswith(PLAN)}
    extra = {name.removeprefix("extra."): value for name, value in own.items() if name.startswith("extra.")}
    return Plan(own["candidates"], own["order"], own["total"], extra)


def picture_salt(salt: int, picture: int) -> int:
    """The salt of a picture of a sample."""
    return zlib.crc32(np.array([salt, picture], np.int64).tobytes())
