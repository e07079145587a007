"""How a video becomes visual tokens, as far as it follows from sizes alone.

Most checkpoints read the frames of a video as pictures. Those with the encoder TSP ("temporal and spatial pooling") cut
the frames into boxes of `(t, h, w)` frames, rows and columns, and the mean of a box's tokens becomes one token; every
`t` frames so become one *pooled frame*. Of eight frames of 2 x 2 tokens, with the pool sizes (4, 2, 2) and (8, 1, 1):

    . end  . end  sep  .... end  sep          . a visual token    end, sep  text that the encoder adds

Frames are a single tile each. Their tokens are numbered through, frame after frame and row by row, and a pool is a
table of these numbers.

Source: VILA `llava/model/encoders/video/tsp.py`; NVILA (arXiv 2412.04468).
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Int

from vila_jax.errors import PromptError
from vila_jax.vision.preprocess import ProcessedImage

PoolSize = tuple[int, int, int]
"""Frames, rows and columns of a box."""

NUM_FRAMES = 8
"""Of a video, where the checkpoint does not say."""


@dataclasses.dataclass(frozen=True)
class TSP:
    """The encoder of videos that pools.

    Attributes:
      pool_sizes: one pool after another makes its tokens of the whole video.
      start_tokens, end_tokens: texts around every pooled frame; None for none.
      sep_tokens: text after every pool.
    """

    pool_sizes: tuple[PoolSize, ...]
    start_tokens: str | None = None
    end_tokens: str | None = "\n"
    sep_tokens: str | None = None

    @property
    def window(self) -> int:
        """`W`: tokens of the largest box."""
        return max(map(math.prod, self.pool_sizes))

    def num_tokens(self, frames: int, side: int) -> int:
        """Visual tokens that videos of `frames` frames of `side x side` tokens, all together, become at the most."""
        return sum(frames // t * (side // h) * (side // w) for t, h, w in self.pool_sizes)

    def pooled_frames(self, frames: int) -> tuple[int, ...]:
        """Pooled frames of a video, for each pool."""
        return tuple(frames // t for t, _, _ in self.pool_sizes)

    def check_frames(self, frames: int, where: str) -> None:
        """Refuses a video that is not cut into whole boxes.

        Raises:
          PromptError: a pool size does not divide the number of frames.
        """
        for size in self.pool_sizes:
            if frames % size[0]:
                multiple = math.lcm(*(t for t, _, _ in self.pool_sizes))
                raise PromptError(
                    f"{frames} frames cannot be pooled by {size[0]}, as this model's pool size {list(size)} wants",
                    where=where,
                    fix=f"Ask for a multiple of {multiple} frames: `num_frames` of the video, or --num-frames.",
                )


@dataclasses.dataclass(frozen=True)
class VideoConfig:
    """How a checkpoint wants its videos.

    Attributes:
      num_frames: taken of a video.
      fps: where given, frames are taken this often instead, and `num_frames` at the most.
      tsp: how their tokens are pooled; None where frames are read as pictures.
    """

    num_frames: int = NUM_FRAMES
    fps: float | None = None
    tsp: TSP | None = None


@dataclasses.dataclass(frozen=True)
class PooledVideo:
    """A video whose tokens are pooled: its frames, a single tile each."""

    frames: tuple[ProcessedImage, ...]


def pool_boxes(size: PoolSize, frames: int, side: int) -> Int[np.ndarray, "f v W"]:
    """The tokens of every box.

    Args:
      size: (8, 1, 1) makes one frame of eight; (1, 1, 1) changes nothing.
      frames: a multiple of `t`.
      side: tokens along one edge of a frame, a multiple of `h` and of `w`.

    Returns:
      `f = frames / t` pooled frames of `v` boxes in raster order, `W = t * h * w` tokens each.
    """
    t, h, w = size
    tokens = np.arange(frames * side**2, dtype=np.int32)
    boxes = tokens.reshape(frames // t, t, side // h, h, side // w, w).transpose(0, 2, 4, 1, 3, 5)
    return boxes.reshape(frames // t, -1, math.prod(size))
