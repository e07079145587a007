"""The tokens to which a trained scorer gives most.

The scorer (`vila_jax.nn.scorer`) is a small network of the model's own: it reads what the projector takes of a patch,
and has learned how much attention the decoder's answers pay to such a patch, whatever the question. Distilling a cheap
score of tokens from a model's own attributions is the idea of arXiv 2506.01097; this scorer, its loss and its targets
are ours, and no code is reproduced (see `train/scorer.py`).

It costs two small matrix products for each patch, no attention of the tower is computed, and it needs no class token.
By default the patches of a picture, overview and tiles alike, compete as one sequence, since the targets were the
decoder's attention to that sequence; `per_tile=true` shares the tokens out among the tiles in proportion to their real
patches.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vila_jax.budgets.allocate import largest_remainder
from vila_jax.budgets.method import Plan, Selector
from vila_jax.budgets.select import keep_top
from vila_jax.errors import BudgetError
from vila_jax.nn.config import VisionConfig, VLMConfig


@dataclasses.dataclass(frozen=True)
class Learned(Selector):
    """The best patches by the model's own scorer.

    Options:
      positions: see `Selector`.
      per_tile: every tile keeps its own best, as many as its share of the real patches grants.

    Intermediates: `score`, the scorer's `learned_score` of every cell, `[I, P, N]`.
    """

    name: ClassVar[str] = "learned"

    per_tile: bool = False

    def check(self, config: VLMConfig) -> None:
        if config.scorer_width is None:
            raise BudgetError(
                "this model has no token scorer",
                where="budget method 'learned'",
                fix="Train one, which leaves the model as it is: `python -m train scorer --model MODEL --out FOLDER`.",
            )

    def intermediates(self, vision: VisionConfig, depth: int) -> dict[str, str]:
        del vision, depth
        return {"score": "learned_score"}

    def keep(self, inputs: Mapping[str, Float[Array, "I P N *width"]], plan: Plan) -> Bool[Array, "I P N"]:
        scores, candidates = inputs["score"], plan.candidates
        if self.per_tile:
            room = candidates.sum(-1, dtype=jnp.int32)
            return keep_top(scores, candidates, largest_remainder(room.astype(jnp.float32), plan.total, room))
        pictures = scores.shape[0]
        best = keep_top(scores.reshape(pictures, -1), candidates.reshape(pictures, -1), plan.total)
        return best.reshape(scores.shape)
