"""Uniform: patches evenly spaced over the picture, whatever it shows. The baseline that needs no pixel and no luck.

A picture is up to two sheets: the overview, and the mosaic of its full-resolution tiles without padding. They share the
tokens in proportion to their patches. Of `K` tokens a sheet of `H x W` patches puts `K / R` into each of `R` evenly
spaced rows, `R` about `sqrt(K * H / W)` so that the distances across and down are alike. (A stride over the raster
order would line up in columns wherever it divides the width.)
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vila_jax.budgets.method import Plan, Selector
from vila_jax.vision.geometry import TileGeometry


@dataclasses.dataclass(frozen=True)
class Uniform(Selector):
    """Evenly spaced patches; for the option `positions` see `Selector`."""

    name: ClassVar[str] = "uniform"

    def extra(self, geometry: TileGeometry, total: int, max_tiles: int, salt: int) -> dict[str, np.ndarray]:
        del salt
        overview = geometry.overview().reshape(-1, geometry.side)
        mosaic = geometry.mosaic()
        patches = overview.size + mosaic.size
        of_overview = (2 * total * overview.size + patches) // (2 * patches)  # to the nearest, halves up
        keep = np.zeros((max_tiles, geometry.patches_per_tile), bool)
        for sheet, count in ((overview, of_overview), (mosaic, total - of_overview)):
            height, width = sheet.shape
            keep.reshape(-1)[sheet[evenly_spaced(height, width, count)]] = True
        return {"keep": keep}

    def keep(self, inputs: Mapping[str, Float[Array, "I P N *width"]], plan: Plan) -> Bool[Array, "I P N"]:
        del inputs
        return jnp.asarray(plan.extra["keep"])


def evenly_spaced(height: int, width: int, count: int) -> tuple[Int[np.ndarray, " count"], Int[np.ndarray, " count"]]:
    """Rows and columns of `count` distinct cells, spread evenly over a grid of `height x width` cells."""
    if count == 0:
        return np.zeros(0, np.int32), np.zeros(0, np.int32)
    lines = min(max(round(math.sqrt(count * height / width)), math.ceil(count / width), 1), height, count)
    ends = np.arange(lines + 1) * count // lines  # line `i` holds the tokens `ends[i]` to `ends[i + 1]`
    per_line = np.diff(ends)
    line = np.repeat(np.arange(lines), per_line)
    place, of = np.arange(count) - ends[line], per_line[line]
    rows = (2 * line + 1) * height // (2 * lines)
    columns = (2 * place + 1) * width // (2 * of)
    return rows.astype(np.int32), columns.astype(np.int32)
