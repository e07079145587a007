"""What every patch of a drawn picture shows, as arrays that are packed beside its tiles."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from train.data.documents import picture_order
from train.data.packing import Axis, Laid
from train.data.records import Document, Record
from train.data.samples import Layout
from train.recipe import Stage
from train.scenes.source import shots
from vila_jax.errors import ConfigError
from vila_jax.scenes import NUM_COLORS, NUM_CONTENTS, Scene, patch_labels, presence
from vila_jax.vision.geometry import TileGeometry

NAMES = ("colors", "contents", "present")
"""The arrays, all of them with an axis of tiles in front."""

Box = tuple[int, int, int, int]


def with_labels(stage: Stage, layouts: Sequence[Layout]) -> list[Layout]:
    """Layouts that give the labels which the objective of a stage needs; the same ones where it needs none.

    Raises:
      ConfigError: a budget changes the tiles, so that labels of the whole picture do not fit them.
    """
    if stage.objective == "answers":
        return list(layouts)
    for layout, budget in zip(layouts, stage.budgets, strict=True):
        if layout.visual.limit is not None or layout.visual.spec.reduction is not None:
            raise ConfigError(
                f"patch labels are of whole tiles, and {budget} makes them smaller",
                where="budgets",
                fix="Name budgets that choose among finished visual tokens, such as hired:0.2.",
            )
    return [LabelledLayout(*(getattr(layout, f.name) for f in dataclasses.fields(layout))) for layout in layouts]


@dataclasses.dataclass(frozen=True)
class LabelledLayout(Layout):
    """Lays out drawn records, and labels their tiles.

    `colors` and `contents [R, N]` are those of `vila_jax.scenes.patch_labels`, and `present [R, Q]` is `presence`.
    """

    @property
    def axes(self) -> dict[str, Axis]:
        """The arrays of a sample, and what their leading axes count."""
        return super().axes | dict.fromkeys(NAMES, Axis.TILES)

    def __call__(self, record: Record, salt: int = 0) -> Laid:
        """The sample, see `Layout`."""
        laid = super().__call__(record, salt)
        labels = self._labels(record)
        shown = {name: array[: len(laid.pixels)] for name, array in labels.items()}  # later pictures may be cut
        return dataclasses.replace(laid, extras={**laid.extras, **shown})

    def _labels(self, record: Record) -> dict[str, np.ndarray]:
        """Labels of all tiles of a record, in the order in which its pictures are shown."""
        scenes = [shot.scene for shot in shots(record)]
        order = picture_order(record.matched) if isinstance(record, Document) else range(len(scenes))
        tile = self.preprocessor.values_config.tile_size
        found = []
        for scene in (scenes[i] for i in order):
            geometry = self.preprocessor.geometry(scene.image.shape[:2])
            crops = tile_crops(scene, geometry, tile)
            found += [patch_labels(scene, crop, tile_px=tile, patch=tile // geometry.side) for crop in crops]
        patches = self.visual.planner.config.vlm.vision.num_patches
        colors, contents = (np.array([pair[i] for pair in found], np.int32).reshape(-1, patches) for i in range(2))
        present = np.array([presence(*pair) for pair in found], np.int32).reshape(-1, NUM_COLORS * NUM_CONTENTS)
        return dict(zip(NAMES, (colors, contents, present), strict=True))


def tile_crops(scene: Scene, geometry: TileGeometry, tile: int) -> list[Box]:
    """The part of the picture that each tile shows, `(x0, y0, x1, y1)`; scenes fill their grid of tiles exactly."""
    height, width = scene.image.shape[:2]
    rows, columns = geometry.grid or (0, 0)
    assert not rows or (height, width) == (rows * tile, columns * tile), "the picture does not fill its tiles"
    corners = [(c * tile, r * tile) for r in range(rows) for c in range(columns)]
    return [(0, 0, width, height), *((x, y, x + tile, y + tile) for x, y in corners)]
