"""The pooled tokens of a batch's videos: which rows of its table of visual tokens each of them averages."""

import numpy as np
from jaxtyping import Int

from vila_jax.vision.pooling import TSP, pool_boxes


class PoolTable:
    """Collects the boxes of one video after another.

    Pooled tokens stand in the table of visual tokens behind those that they average.

    Args:
      tsp: how videos are pooled.
      side: tokens along one edge of a frame.
      first: row of the first pooled token.
    """

    def __init__(self, tsp: TSP, side: int, first: int):
        self._tsp, self._side, self._first = tsp, side, first
        self._boxes: list[Int[np.ndarray, "tokens W"]] = []
        self._next = first

    def add(self, rows: Int[np.ndarray, " tokens"]) -> list[Int[np.ndarray, " pooled"]]:
        """Pools a video.

        Args:
          rows: of the tokens of its frames, frame after frame.

        Returns:
          The rows of its pooled tokens, one array per pooled frame, pool after pool.
        """
        segments: list[Int[np.ndarray, " pooled"]] = []
        for size in self._tsp.pool_sizes:
            boxes = rows[pool_boxes(size, len(rows) // self._side**2, self._side)]
            self._boxes.append(boxes.reshape(-1, boxes.shape[2]))
            own = self._next + np.arange(len(self._boxes[-1]), dtype=np.int32)
            segments += list(own.reshape(boxes.shape[:2]))
            self._next += len(own)
        return segments

    def index(self, frames: int) -> Int[np.ndarray, "P W"]:
        """The boxes of all videos, padded with -1 to what `frames` frames would become.

        Args:
          frames: at least as many as were added; a bucket, so that it decides the shape alone.
        """
        index = np.full((self._tsp.num_tokens(frames, self._side), self._tsp.window), -1, np.int32)
        for box, start in zip(self._boxes, np.cumsum([0, *map(len, self._boxes)]), strict=False):
            index[start : start + len(box), : box.shape[1]] = box
        return index
