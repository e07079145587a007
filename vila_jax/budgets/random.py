"""Random tokens: the baseline that a method has to beat."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from jaxtyping import Array, Bool, Float

from vila_jax.budgets.method import Plan, Selector
from vila_jax.budgets.select import keep_top
from vila_jax.errors import BudgetError
from vila_jax.vision.geometry import TileGeometry


@dataclasses.dataclass(frozen=True)
class Random(Selector):
    """Every real patch of a picture is as likely as any other to be kept.

    They are shuffled on the host, since that needs no pixel, and the first of them are kept. The order depends on the
    seed, the picture's salt and the geometry, but not on the batch.

    Options:
      positions: see `Selector`.
      seed: pictures of the same salt and geometry keep the same tokens under the same seed; not negative.
    """

    name: ClassVar[str] = "random"
    nested: ClassVar[bool] = True
    after_tower: ClassVar[bool] = True

    seed: int = 0

    def __post_init__(self):
        if self.seed < 0:
            raise BudgetError(f"seed is {self.seed}, but must not be negative", where="budget method 'random'")

    def extra(self, geometry: TileGeometry, total: int, max_tiles: int, salt: int) -> dict[str, np.ndarray]:
        del total
        shuffled = np.random.default_rng((self.seed, salt)).permutation(geometry.order())
        score = np.zeros(max_tiles * geometry.patches_per_tile, np.float32)
        score[shuffled] = -np.arange(len(shuffled))
        return {"score": score}

    def keep(self, inputs: Mapping[str, Float[Array, "I P N *width"]], plan: Plan) -> Bool[Array, "I P N"]:
        del inputs
        pictures = len(plan.candidates)
        kept = keep_top(plan.extra["score"], plan.candidates.reshape(pictures, -1), plan.total)
        return kept.reshape(plan.candidates.shape)
