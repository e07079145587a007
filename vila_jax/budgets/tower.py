"""What methods inside the vision tower share: their place in the tower, and their schedules over its blocks.

A tower is one program for all tiles, so that a step of this stage leaves as many tokens of one as of the other, behind
every block so many as its schedule says. Behind the tower it acts like a step of the stage `tokens` that keeps whatever
is left (`Survivors`); another step of that stage may choose among these.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from jaxtyping import Array, Bool, Float

from vila_jax.budgets.method import Plan, Selector, TowerMethod
from vila_jax.errors import BudgetError
from vila_jax.nn.config import VLMConfig
from vila_jax.nn.tower_tokens import Tokens


@dataclasses.dataclass(frozen=True)
class TowerReduction:
    """A method with its schedule: the `Reduction` that the tower runs with."""

    rule: TowerMethod
    left: tuple[int, ...]

    def __call__(self, block: int, tokens: Tokens, keys: Float[Array, "R S heads H"]) -> Tokens:
        return self.rule.reduce(block, tokens, keys, self.left)

    def computed(self, patches: int) -> tuple[int, ...]:
        """Tokens of a tile of `patches`, without the class token, in the MLP of every block."""
        return self.left if self.rule.shortens else (patches,) * len(self.left)


@dataclasses.dataclass(frozen=True)
class Survivors(Selector):
    """Keeps every candidate. Not in the registry: it is what follows a step inside the tower."""

    name: ClassVar[str] = "survivors"
    after_tower: ClassVar[bool] = True

    def keep(self, inputs: Mapping[str, Float[Array, "I P N *width"]], plan: Plan) -> Bool[Array, "I P N"]:
        del inputs
        return plan.candidates


def make_reduction(rule: TowerMethod, kept: int, config: VLMConfig) -> TowerReduction:
    """The method in the tower of a model, of whose tiles it leaves `kept` tokens.

    Raises:
      BudgetError: the model's visual tokens are no single patches, or there is no such schedule.
    """
    window, scales = config.projector.window, config.num_scales
    if window > 1:
        _refuse(rule, f"this model's projector merges windows of {window} x {window} patches")
    if scales > 1:
        _refuse(rule, f"this model puts the patches of {scales} scales together")
    return TowerReduction(rule, rule.schedule(config.vision.num_patches, kept, config.vision_depth))


def _refuse(rule: TowerMethod, reason: str) -> None:
    raise BudgetError(
        f"it takes patches away inside the vision tower, and {reason}, of which some would be missing",
        where=f"budget method {rule.name!r}",
        fix="Use a method between tower and decoder, such as hired:0.2.",
    )


def even_schedule(patches: int, kept: int, first: int, last: int, depth: int) -> tuple[int, ...]:
    """From `patches` to `kept` in equal steps at the blocks `first` to `last` of `depth`; a number for every block."""
    steps = last - first + 1
    done = (min(max(block - first + 1, 0), steps) for block in range(depth))
    return tuple(patches - (patches - kept) * part // steps for part in done)
