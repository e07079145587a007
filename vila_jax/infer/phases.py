"""The phases of a request as calls, each a compiled program on the model's devices."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vila_jax.budgets import Selection
from vila_jax.infer.decode import Progress, decode_chunk
from vila_jax.infer.decoder_plan import Schedule, SparseSchedule, Stages
from vila_jax.infer.layout import Layout, Tiles
from vila_jax.infer.likelihood import Targets, target_log_probs
from vila_jax.infer.prefill import Prompts, prefill, prompt_embeddings, prompt_logits, tokens_left
from vila_jax.infer.programs import Programs
from vila_jax.infer.sampler import Sampler
from vila_jax.infer.vision import Encoded, VisualTokens, encode_tiles, selection, visual_tokens
from vila_jax.nn.config import DecoderConfig

CHUNK = 8
"""Decode steps per program: enough to hide the dispatch, few enough to stream."""


class Phases:
    """What `vila_jax.infer` does on the device; no call waits for its result.

    Args:
      programs: compiles.
      config: of the decoder.
      dtype: of its cache.
    """

    def __init__(self, programs: Programs, config: DecoderConfig, dtype: str):
        self.programs, self._config, self._dtype = programs, config, dtype

    def visual_tokens(self, tiles: Tiles | None) -> VisualTokens | None:
        """The visual tokens of all pictures of a batch; None without pictures."""
        if tiles is None:
            return None
        encoded = self._encode(tiles)
        parts = encoded, tiles.scales, tiles.pictures, tiles.pools
        return self.programs.call("visual tokens", visual_tokens, *parts, spec=tiles.spec)

    def selection(self, tiles: Tiles) -> Selection:
        """The patches that the budget keeps."""
        return self.programs.call(
            "selection", selection, self._encode(tiles), tiles.scales, tiles.pictures, spec=tiles.spec
        )

    def features(self, tiles: Tiles) -> Float[Array, "R N Dv"]:
        """What the tower says of the patches of all tiles."""
        return self._encode(tiles).features

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
        self, layout: Layout, sampler: Sampler, limit: Int[np.ndarray, " B"], ends: Int[np.ndarray, " E"]
    ) -> Progress:
        """From pixels and prompts to the first token of every row."""
        return self.programs.call(
            "prefill",
            prefill,
            *(layout.prompts, self.visual_tokens(layout.tiles), sampler, limit, ends, layout.kept),
            config=self._config,
            dtype=self._dtype,
            cache_lengths=layout.cache_lengths,
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

    def _encode(self, tiles: Tiles) -> Encoded:
        spec = tiles.spec
        static = {"dtype": spec.dtype, "wanted": spec.wanted, "reduction": spec.reduction}
        return self.programs.call("vision tower", encode_tiles, tiles.pixels, tiles.shown, **static)

    def _decode(self, do: Callable[..., Any], schedule: Schedule | SparseSchedule | None, *arrays: Any) -> Any:
        stages = Stages() if schedule is None else schedule.stages
        return do("decode", decode_chunk, *arrays, donate=("progress",), steps=CHUNK, stages=stages)
