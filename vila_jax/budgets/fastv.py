"""FastV: after a few layers, the visual tokens that the last token of the prompt looks at least are dropped.

"An Image is Worth 1/2 Tokens After Layer 2" (arXiv 2403.06764, ECCV 2024), as published in pkunlp-icler/FastV, d165972:

1. the first `layer` layers read everything;
2. visual tokens are scored by the attention of layer `layer - 1`: the row of the last token of the prompt, averaged
   over heads (the paper speaks of the attention received from all tokens; the code, followed here, reads the last row);
3. from layer `layer` on, the best `int(n * KEEP)` of a row's `n` visual tokens are left, with all text.

Tokens keep the positions that they had (`positions=original`), and generated ones count on from there. The reference
has two forms, one that drops and one that masks; they agree, and only the first is here. It knows one picture at a
fixed place, whereas here all visual tokens of a row compete, wherever they stand. `fastv:288,layer=2` is its usual
setting for the 576 tokens of LLaVA-1.5.
"""

import dataclasses
from typing import ClassVar

from vila_jax.budgets.decoder_method import Dropper
from vila_jax.errors import BudgetError


@dataclasses.dataclass(frozen=True)
class FastV(Dropper):
    """FastV.

    Options:
      positions: `original`, or `renumbered` behind the cut.
      layer: the first layer (0-based) that reads fewer tokens.
    """

    name: ClassVar[str] = "fastv"

    layer: int = 2

    def cuts(self, depth: int) -> tuple[int, ...]:
        if not 0 < self.layer < depth:
            raise BudgetError(
                f"tokens cannot leave before layer {self.layer} of a decoder of {depth} layers",
                where="option layer of budget method 'fastv'",
                fix=f"Give a number from 1 to {depth - 1}." if depth > 1 else "Use a budget before the decoder.",
            )
        return (self.layer,)

    def ratios(self, keep: float) -> tuple[float, ...]:
        return (keep,)
