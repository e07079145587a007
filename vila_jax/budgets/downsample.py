"""A smaller picture: the baseline that spends fewer tokens by showing less to begin with.

KEEP counts as for any method, from the picture as the model would see it, so that methods are compared at equal
tokens. The picture is then shown in the first form that these tokens pay for:

    what the model would see   where that is no more
    fewer tiles                any-res: the best smaller canvas with its overview; VILA's dynamic tiles: a smaller grid
    a single tile              the whole picture, as the tower was trained to see it
    a smaller tile             that tile resized to `isqrt(tokens)` patches along an edge; the tower's positions are
                               interpolated, as Hugging Face does (`interpolate_pos_encoding`)

and all of its patches become tokens. So the tower works less too, unlike before methods that choose among its patches.
Forms come in steps: what is left of the tokens is not spent, and a picture says how many it has. As with every budget,
newline tokens are left out. Models that see several scales (S2) are shown no less than all their scales.

Tiles of another size are another program of the tower, compiled once for each size.
"""

import dataclasses
from typing import ClassVar

from vila_jax.budgets.method import Method, Stage


@dataclasses.dataclass(frozen=True)
class Downsample(Method):
    """A smaller picture. It has no options; how pictures are made smaller is told by `within` of the preprocessors."""

    name: ClassVar[str] = "downsample"
    stage: ClassVar[Stage] = "picture"
