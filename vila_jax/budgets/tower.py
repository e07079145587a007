"""What methods inside the vision tower share: their place in the tower, and their schedules over its blocks.

A tower cannot be shorter for one picture than for another: a step of this stage leaves `left` tokens of *every* tile,
behind every block as many as its schedule says. Behind the tower it acts like a step of the stage `tokens` that keeps
what the tower has left (`Survivors`), and a step of that stage may go on to choose among these.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import ClassVar

from jaxtyping import Array, Bool, Float

from vila_jax.budgets.method import Plan, Selector, TowerMethod
from vila_jax.errors import BudgetError
from vila_jax.nn.config import VLMConfig
from vila_jax.nn.tower_tokens import Tokens


@dataclasses.dataclass(frozen=True)
class TowerReduction:
    """A method with its schedule: the `Reduction` that the tower runs with.

    Attributes:
      rule: the method.
      left: patches that are left of a tile behind the attention of every block.
    """

    rule: TowerMethod
    left: tuple[int, ...]

    def __call__(self, block: int, tokens: Tokens, keys: Float[Array, "R S heads H"]) -> Tokens:
        return self.rule.reduce(block, tokens, keys, self.left)


@dataclasses.dataclass(frozen=True)
class Survivors(Selector):
    """Keeps every patch that is still there behind the tower. Not in the registry: it follows a step of the tower."""

    name: ClassVar[str] = "survivors"
    after_tower: ClassVar[bool] = True

    def keep(self, inputs: Mapping[str, Float[Array, "I P N *width"]], plan: Plan) -> Bool[Array, "I P N"]:
        del inputs
        return plan.candidates


def check_tower(rule: TowerMethod, config: VLMConfig) -> None:
    """Refuses models whose tokens are not single patches.

    Raises:
      BudgetError: with the reason.
    """
    if config.projector.window > 1:
        window = config.projector.window
        raise BudgetError(
            f"{rule.name} takes patches away inside the vision tower, and this model's projector merges windows of "
            f"{window} x {window} patches, of which some would then be missing",
            where=f"budget method {rule.name!r}",
            fix="Use a method between tower and decoder, such as hired:0.2.",
        )
    if config.num_scales > 1:
        raise BudgetError(
            f"{rule.name} takes patches away inside the vision tower, and this model averages the patches of "
            f"{config.num_scales} scales, of which some would then be missing",
            where=f"budget method {rule.name!r}",
            fix="Use a method between tower and decoder, such as hired:0.2.",
        )


def even_schedule(patches: int, kept: int, first: int, last: int, depth: int) -> tuple[int, ...]:
    """From `patches` to `kept` in equal steps at the blocks `first` to `last` of `depth`; a number for every block."""
    steps = last - first + 1
    done = (min(max(block - first + 1, 0), steps) for block in range(depth))
    return tuple(patches - (patches - kept) * part // steps for part in done)


def halving_schedule(patches: int, kept: int, depth: int) -> tuple[int, ...]:
    """As `even_schedule` over all blocks, but no block takes more than half: where it would, earlier ones take more.

    Raises:
      BudgetError: even so too many are left.
    """
    left = [*even_schedule(patches, kept, 0, depth - 1, depth)]
    for block in reversed(range(depth - 1)):
        left[block] = min(left[block], 2 * left[block + 1])
    if patches > 2 * left[0]:
        raise BudgetError(
            f"a block merges at most half of the tokens, so that {depth} blocks leave at least "
            f"{-(-patches // 2**depth)} of {patches}, not {kept}",
            fix="Keep more.",
        )
    return tuple(left)


def constant_schedule(patches: int, kept: int, rate: int, depth: int) -> tuple[int, ...]:
    """`rate` fewer in every block (half of them, where there are not twice as many), until `kept` are left.

    Raises:
      BudgetError: the blocks are too few.
    """
    left = itertools.accumulate(
        range(depth), lambda count, _: max(kept, count - min(rate, count // 2)), initial=patches
    )
    _, *behind = left
    if behind[-1] > kept:
        raise BudgetError(
            f"{rate} fewer in each of {depth} blocks leave {behind[-1]} of {patches} tokens, but {kept} are asked for",
            where="option r",
            fix=f"Give a larger r, leave it out, or keep {behind[-1]} tokens.",
        )
    return tuple(behind)
