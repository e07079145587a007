"""Records that are drawn when they are asked for, and how a record says which scenes it shows."""

import dataclasses
import functools
import io
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from train.data.records import Record
from vila_jax.scenes import FULL, READING, SINGLE, Difficulty, Scene, draw_scene

SIZE = 2**31 - 1
"""Records of a drawn data set; no run sees one twice."""

DIFFICULTIES: dict[str, Difficulty] = {"full": FULL, "reading": READING, "single": SINGLE}

Make = Callable[[np.random.Generator, str], Record]
"""Draws a record; the second argument is its id, to which `show` adds the pictures."""


class DrawnRecords:
    """A source for grain.

    Args:
      name: of the data set; sets of different names are unrelated.
      make: draws a record.
    """

    def __init__(self, name: str, make: Make):
        self._name, self._make = name, make

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Record:
        rng = np.random.default_rng((zlib.crc32(self._name.encode()), index))
        return self._make(rng, f"{self._name}/{index}")


@dataclasses.dataclass(frozen=True)
class Shot:
    """A scene of the `train` split by its seed; `difficulty` is one of `DIFFICULTIES`."""

    difficulty: str
    seed: int

    @classmethod
    def draw(cls, rng: np.random.Generator, difficulty: str) -> "Shot":
        """Any scene of this difficulty."""
        return cls(difficulty, int(rng.integers(2**31)))

    @property
    def scene(self) -> Scene:
        """The scene itself."""
        return _scene(self.difficulty, self.seed)


@functools.lru_cache(maxsize=64)  # a record is laid out right after it was drawn, and its labels need the scene again
def _scene(difficulty: str, seed: int) -> Scene:
    return draw_scene(seed, difficulty=DIFFICULTIES[difficulty])


def show(record_id: str, shots: Sequence[Shot]) -> tuple[str, tuple[bytes, ...]]:
    """The id of a record that shows some scenes, `scenes:captions/7 full.123`, and their pictures as BMP files."""
    names = (f"{shot.difficulty}.{shot.seed}" for shot in shots)
    return " ".join([record_id, *names]), tuple(_bmp(shot.scene) for shot in shots)


def shots(record: Record) -> list[Shot]:
    """The scenes of a drawn record, in the order of its pictures."""
    names = (name.split(".") for name in record.id.split(" ")[1:])
    return [Shot(difficulty, int(seed)) for difficulty, seed in names]


def _bmp(scene: Scene) -> bytes:
    file = io.BytesIO()
    Image.fromarray(scene.image).save(file, "BMP")  # lossless, and the quickest of all to write and read
    return file.getvalue()
