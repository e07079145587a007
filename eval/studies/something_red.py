"""The task of the encoder study: does a drawn scene show something red?"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from vila_jax.scenes import Difficulty, draw_scene
from vila_jax.scenes.world import Split

_DIFFICULTY = Difficulty(shapes=(1, 4), fine=(0, 0), oblong=0.0)


class Examples(NamedTuple):
    """Pictures of 96 x 96 pixels, and whether each shows something red."""

    pictures: UInt8[np.ndarray, "B 96 96 3"]
    answers: Bool[np.ndarray, " B"]


def draw(count: int, split: Split) -> Examples:
    """The first scenes of a split that make `count` examples, both answers equally frequent.

    One to four shapes of seven colours stand on dark ground; the answer is in the few patches that a red one covers.
    """
    wanted = {True: count - count // 2, False: count // 2}
    pictures, answers = [], []
    seed = 0
    while any(wanted.values()):
        scene = draw_scene(seed, split=split, difficulty=_DIFFICULTY)
        answer = any(thing.color == "red" for thing in scene.objects)
        if wanted[answer]:
            wanted[answer] -= 1
            pictures.append(scene.image)
            answers.append(answer)
        seed += 1
    return Examples(np.stack(pictures), np.array(answers))


def mirrored(rng: np.random.Generator, pictures: UInt8[np.ndarray, "B h w 3"]) -> UInt8[np.ndarray, "B h w 3"]:
    """Half of the pictures mirrored left to right, half upside down, independently: the answers stay."""
    across, down = rng.random((2, len(pictures), 1, 1, 1)) < 0.5
    pictures = np.where(across, pictures[:, :, ::-1], pictures)
    return np.where(down, pictures[:, ::-1], pictures)
