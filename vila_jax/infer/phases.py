"""The phases of a request as calls, each a compiled program on the model's devices."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vila_jax.budgets import Selection
from vila_jax.infer.decode import Progress, decode_chunk
from vila_jax.infer.decoder_plan import Schedule, SparseSchedule, Stages
from vila_jax.infer.image_cache import ImageCache
from vila_jax.infer.layout import Layout
from vila_jax.infer.likelihood import Targets, target_log_probs
from vila_jax.infer.prefill import (
    Before,
    Prompts,
    Room,
    lengthened,
    prefill,
    prompt_embeddings,
    prompt_logits,
    tokens_left,
)
from vila_jax.infer.programs import Programs
from vila_jax.infer.sampler import Sampler
from vila_jax.infer.tiles import Tiles
from vila_jax.infer.vision import VisualTokens, selection, visual_tokens
from vila_jax.nn.config import DecoderConfig

CHUNK = 8
"""Decode steps per program: enough to hide the dispatch, few enough to stream."""


class Phases:
    """What `vila_jax.infer` does on the device; no call waits for its result.

    Args:
      programs: compiles.
      config: of the decoder.
      cache_dtype: of keys and values; `int8` comes with scales.
      images: what the tower said of earlier pictures.
    """

    def __init__(self, programs: Programs, config: DecoderConfig, cache_dtype: str, images: ImageCache):
        self.programs, self.images, self._config, self.cache_dtype = programs, images, config, cache_dtype

    @contextlib.contextmanager
    def rehearsal(self) -> Iterator["Phases"]:
        """Phases that compile what they are asked for, and run nothing; on leaving, all of it is compiled."""
        with self.programs.rehearsal() as programs:
            yield Phases(programs, self._config, self.cache_dtype, self.images)

    def visual_tokens(self, tiles: Tiles | None) -> VisualTokens | None:
        """The visual tokens of all pictures of a batch; None without pictures."""
        if tiles is None:
            return None
        encoded = self.images.encode(self.programs, tiles)
        parts = encoded, tiles.scales, tiles.pictures, tiles.pools
        return self.programs.call("visual tokens", visual_tokens, *parts, spec=tiles.spec)

    def selection(self, tiles: Tiles) -> Selection:
        """The patches that the budget keeps."""
        encoded = self.images.encode(self.programs, tiles)
        return self.programs.call("selection", selection, encoded, tiles.scales, tiles.pictures, spec=tiles.spec)

    def features(self, tiles: Tiles) -> Float[Array, "R N Dv"]:
        """What the tower says of the patches of all tiles."""
        return self.images.encode(self.programs, tiles).features

    def embeddings(
        self, prompts: Prompts, visual: VisualTokens | None
    ) -> tuple[Float[Array, "B T D"], Int[Array, " B"]]:
        """What the decoder reads of the prompts, and their lengths."""
        return self.programs.call("embeddings", prompt_embeddings, prompts, visual)

    def logits(self, layout: Layout) -> tuple[Float[Array, "B T C"], Int[Array, " B"]]:
        """Logits of all tokens of the prompts that are left, and the lengths of the rows."""
        kept, schedule = layout.kept, layout.schedule
        visual = self.visual_tokens(layout.tiles)
        return self.programs.call("logits", prompt_logits, layout.prompts, visual, kept, schedule=schedule)

    def target_log_probs(self, layout: Layout, targets: Targets) -> tuple[Float[Array, "B Q"], Bool[Array, "B Q"]]:
        """Log-probabilities of some tokens, and which of them are the most probable."""
        arrays = layout.prompts, self.visual_tokens(layout.tiles), targets, layout.kept
        return self.programs.call("likelihoods", target_log_probs, *arrays, schedule=layout.schedule)

    def tokens_left(self, layout: Layout) -> Int[Array, "B T"]:
        """The rows of the table of visual tokens that a budget inside the decoder leaves."""
        visual = self.visual_tokens(layout.tiles)
        return self.programs.call(
            "tokens left", tokens_left, layout.prompts, visual, layout.kept, schedule=layout.schedule
        )

    def prefill(
        self,
        layout: Layout,
        visual: VisualTokens | None,
        sampler: Sampler,
        limit: Int[np.ndarray, " B"],
        ends: Int[np.ndarray, " E"],
        before: Before | None = None,
    ) -> Progress:
        """From prompts and visual tokens to the first token of every row.

        Args:
          before: what was read of the row before; it is copied and stays as it is.
        """
        if before is not None:  # copied by a program of its own, lest this one be compiled for every length before
            longer = self.programs.call("copy of a cache", lengthened, before.cache, lengths=layout.cache_lengths)
            before = before._replace(cache=longer)
        return self.programs.call(
            "prefill" if before is None else "prefill of the rest",
            prefill,
            *(layout.prompts, visual, sampler, limit, ends, layout.kept, before),
            donate=("before",),
            room=Room(self._config, self.cache_dtype, layout.cache_lengths),
            schedule=layout.schedule,
        )

    def decode(
        self,
        progress: Progress,
        stopped: Bool[np.ndarray, " B"],
        sampler: Sampler,
        ends: Int[np.ndarray, " E"],
        schedule: Schedule | SparseSchedule | None = None,
    ) -> tuple[Progress, Int[Array, "B steps"]]:
        """A chunk of further tokens of a batch that was read by `schedule`. Takes the memory of `progress` over."""
        return self._decode(self.programs.call, schedule, progress, stopped, sampler, ends)

    def compile_decode(
        self,
        progress: Progress,
        stopped: Bool[np.ndarray, " B"],
        sampler: Sampler,
        ends: Int[np.ndarray, " E"],
        schedule: Schedule | SparseSchedule | None = None,
    ) -> None:
        """Makes the coming calls of `decode` fast."""
        self._decode(self.programs.compile, schedule, progress, stopped, sampler, ends)

    def _decode(self, do: Callable[..., Any], schedule: Schedule | SparseSchedule | None, *arrays: Any) -> Any:
        stages = Stages() if schedule is None else schedule.stages
        return do("decode", decode_chunk, *arrays, donate=("progress",), steps=CHUNK, stages=stages)
