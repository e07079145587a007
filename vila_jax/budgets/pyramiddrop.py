"""PyramidDrop: visual tokens leave in stages, so that deep layers read few of them.

"PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction" (arXiv 2410.17247,
CVPR 2025), as published in Cooperx521/PyramidDrop, 6444f30:

1. at a quarter, a half and three quarters of the depth, the layer *behind* the cut is asked: its query of the last
   token of the prompt against its keys of all tokens, averaged over heads;
2. the best `int(n * ratio)` of a row's `n` visual tokens are left, with ratios 0.5, 0.25, 0.125 of the original number;
3. positions are counted anew behind each cut (`positions=renumbered`).

KEEP is the last ratio; the others lie between, see `ThreeStages`: `pyramiddrop:0.125` is the schedule of the paper.
"""

import dataclasses
from typing import ClassVar

from vila_jax.budgets.decoder_method import ThreeStages
from vila_jax.budgets.method import Positions


@dataclasses.dataclass(frozen=True)
class PyramidDrop(ThreeStages):
    """PyramidDrop; for the options of its schedule see `ThreeStages`.

    Options:
      positions: `renumbered`, or `original`.
    """

    name: ClassVar[str] = "pyramiddrop"
    scores_ahead: ClassVar[bool] = True

    positions: Positions = "renumbered"
