"""The task of the encoder study: does a drawn scene show something to read?"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from vila_jax.scenes import Difficulty, draw_scene
from vila_jax.scenes.world import FINE_THINGS, Split

_DIFFICULTY = Difficulty(shapes=(1, 3), fine=(0, 1), oblong=0.0)


class Examples(NamedTuple):
    """Pictures of 96 x 96 pixels, and whether each shows something to read."""

    pictures: UInt8[np.ndarray, "B 96 96 3"]
    answers: Bool[np.ndarray, " B"]


def draw(count: int, split: Split) -> Examples:
    """The first scenes of a split that make `count` examples, both answers equally frequent.

    What is to be read stands on a card, a plate or a sign, dark on white paper in a coloured frame. Beside it, or
    without it, stand one to three shapes on dark ground, white ones among them: neither a colour nor a bright patch
    gives the answer away, and a tenth of a picture or less does.
    """
    wanted = {True: count - count // 2, False: count // 2}
    pictures, answers = [], []
    seed = 0
    while any(wanted.values()):
        scene = draw_scene(seed, split=split, difficulty=_DIFFICULTY)
        answer = any(thing.kind in FINE_THINGS for thing in scene.objects)
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
