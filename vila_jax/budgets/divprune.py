"""DivPrune (Alvar et al., CVPR 2025, arXiv 2503.02175): the tokens that differ most from each other.

Greedy max-min diversity over the cosine distance of *projected* tokens: first the token farthest from its nearest
neighbour, then again and again the one farthest from all tokens chosen so far. No attention is read, hence any tower
will do. All tiles of a picture are one sequence, so that what the overview already shows is not taken a second time.

Published code: vbdi/divprune, 799e2d9, whose choice this reproduces. It differs in what surrounds the choice: newline
tokens are candidates there, a batch shares the choice of its first row, and a fraction is rounded, not truncated.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from jaxtyping import Array, Bool, Float

from vila_jax.budgets.greedy import cosines, farthest_first
from vila_jax.budgets.method import Plan, Selector
from vila_jax.nn.config import VisionConfig


@dataclasses.dataclass(frozen=True)
class DivPrune(Selector):
    """DivPrune; for the option `positions` see `Selector`. Memory: one float32 matrix `[M, M]` a picture."""

    name: ClassVar[str] = "divprune"
    nested: ClassVar[bool] = True
    after_tower: ClassVar[bool] = True

    def intermediates(self, vision: VisionConfig, depth: int) -> dict[str, str]:
        del vision, depth
        return {"tokens": "projected"}

    def keep(self, inputs: Mapping[str, Float[Array, "I P N *width"]], plan: Plan) -> Bool[Array, "I P N"]:
        tokens, candidates = inputs["tokens"], plan.candidates
        pictures = len(tokens)
        similarity = cosines(tokens.reshape(pictures, -1, tokens.shape[-1]))
        return farthest_first(similarity, candidates.reshape(pictures, -1), plan.total).reshape(candidates.shape)
