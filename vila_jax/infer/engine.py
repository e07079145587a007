"""The engine: from requests to their tokens, logits or kept patches."""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from vila_jax.budgets import Budget
from vila_jax.errors import BudgetError
from vila_jax.hf.config import ModelConfig
from vila_jax.infer.chosen import Chosen
from vila_jax.infer.image_cache import ImageCache
from vila_jax.infer.layout import Layout, Planner, Request
from vila_jax.infer.likelihood import Likelihood, Probe, pack_targets, unpack
from vila_jax.infer.phases import Phases
from vila_jax.infer.prefixes import PrefixCache
from vila_jax.infer.programs import OnCompile, Programs
from vila_jax.infer.resume import keeps_prefixes, resume
from vila_jax.infer.run import Run
from vila_jax.infer.sampler import SamplingOptions
from vila_jax.vision.preprocess import ProcessedImage

__all__ = ["Engine", "OnCompile"]


class Engine:
    """Runs one model on the devices that hold its weights.

    Args:
      graphdef, state: the model, from `vila_jax.hf.load`. The state may still be on its way.
      config: its description.
      dtype: of the computation.
      cache_dtype: of keys and values; `int8` comes with scales. By default that of the computation.
      on_compile: called with the name of a program before it is compiled.
      between_tiles: see `Planner`.
      image_cache: bytes of device memory for what the tower said of pictures; see `vila_jax.infer.image_cache`.
      shapes: of a state that is on its way.

    Attributes:
      planner: lays out batches.
      phases: the work on the device, step by step.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        state: nnx.State | Future[nnx.State],
        config: ModelConfig,
        *,
        dtype: str,
        cache_dtype: str | None = None,
        on_compile: OnCompile | None = None,
        between_tiles: int = 0,
        image_cache: int = 0,
        shapes: nnx.State | None = None,
    ):
        self.config = config
        self.planner = Planner(config, dtype, config.pad_id or 0, between_tiles)
        programs, cache = Programs(graphdef, state, on_compile, shapes), cache_dtype or dtype
        self.phases = Phases(programs, config.vlm.decoder, cache, ImageCache(image_cache))

    def wait(self) -> None:
        """Waits for weights that are on their way.

        Raises:
          VilaError: what went wrong there.
        """
        _ = self.phases.programs.state

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sequence[SamplingOptions],
        new_tokens: int,
        *,
        budget: Budget | None,
        end_tokens: Sequence[int],
        prefixes: PrefixCache | None = None,
    ) -> Run:
        """Starts a batch. Errors of the requests are raised here, before anything runs on the device.

        Args:
          prefixes: what was read before, for a request that comes alone; what is read now is added to it.
        """
        before, keeper = None, None
        if prefixes is not None and len(requests) == 1 and keeps_prefixes(self.planner, budget):
            layout, before, keeper = resume(self.planner, requests[0], budget, new_tokens, prefixes)
        else:
            layout = self.planner.layout(requests, budget, new_tokens)
        layout = self._with_cached_images(layout, requests)
        return Run(self.phases, layout, sampling, new_tokens, end_tokens, before=before, on_end=keeper)

    def _with_cached_images(self, layout: Layout, requests: Sequence[Request]) -> Layout:
        """Counts the pictures that the tower need not see: seen ones, and those of what was read before."""
        known = self.phases.images.known(layout.tiles)
        read = sum(len(request.images) for request in requests) - len(known)  # they come first
        cached = iter([True] * read + known)
        counts = zip(layout.counts, [sum(next(cached) for _ in request.images) for request in requests], strict=True)
        return dataclasses.replace(layout, counts=[dataclasses.replace(own, cached_images=n) for own, n in counts])

    def logits(self, request: Request, *, budget: Budget | None) -> Float[np.ndarray, "T C"]:
        """Float32 logits of all tokens of a spliced prompt; of a budget inside the decoder, of those that are left."""
        layout = self.planner.layout([request], budget, 0)
        logits, lengths = self.phases.logits(layout)
        return np.asarray(logits[0])[: int(lengths[0])]

    def log_likelihoods(self, probes: Sequence[Probe], *, budget: Budget | None) -> list[list[Likelihood]]:
        """For every probe, how probable its continuations are.

        Raises:
          BudgetError: a continuation has several tokens, under a budget inside the decoder: it chooses by what the last
            tokens of a prompt attend to, which here would be those of the continuation.
        """
        layout = self.planner.layout([probe.request for probe in probes], budget, 0)
        targets = pack_targets(probes)
        if layout.schedule is not None and targets.back.any():
            raise BudgetError(
                "the likelihood of several tokens is not known under a budget inside the decoder",
                where=f"budget {str(budget)!r}",
                fix="Use a budget in front of the decoder, or compare single tokens.",
            )
        log_probs, best = self.phases.target_log_probs(layout, targets)
        return unpack(probes, np.asarray(log_probs), np.asarray(best))

    def embeddings(self, request: Request, *, budget: Budget | None) -> Float[np.ndarray, "T D"]:
        """What the decoder reads: embeddings of text and visual tokens in one sequence."""
        layout = self.planner.layout([request], budget, 0)
        embedded, lengths = self.phases.embeddings(layout.prompts, self.phases.visual_tokens(layout.tiles))
        return np.asarray(embedded[0], np.float32)[: int(lengths[0])]

    def features(self, image: ProcessedImage) -> Float[np.ndarray, "P N Dv"]:
        """What the tower says of every patch of a picture's own tiles."""
        tiles = self.planner.tiles([image], None)
        return np.asarray(self.phases.features(tiles), np.float32)[: len(image.pixels)]

    def selection(self, image: ProcessedImage, *, budget: Budget | None) -> Int[np.ndarray, " kept"]:
        """Flat indices (see `vila_jax.vision.geometry`) of the patches of a picture that become tokens, in token order.

        Of merged patches the one that stands for them, -1 where none does. The decoder does not run; without a budget
        nothing does.
        """
        return self.chosen(image, budget=budget).indices

    def chosen(self, image: ProcessedImage, *, budget: Budget | None) -> Chosen:
        """As `selection`, with the patches that are merged in each token."""
        tiles = self.planner.tiles([image], budget)
        if tiles.pictures is None:
            return Chosen.of_patches(image.geometry.order(), image.geometry)
        selection = self.phases.selection(tiles)
        return Chosen.of_selection(selection, image.geometry, tiles.pictures.tiles.shape[1])

    def left(self, request: Request, *, budget: Budget) -> Chosen:
        """The tokens of the one picture of a prompt that the last layer reads, under a budget inside the decoder.

        What is merged inside the decoder shows no patch, and is left out.
        """
        [image] = request.images
        given = self.chosen(image, budget=budget)
        source = np.asarray(self.phases.tokens_left(self.planner.layout([request], budget, 1)))
        rows = source[0][source[0] >= 0]
        if self.planner.selects(budget):  # the table holds the chosen tokens; else all patches, and a newline
            return given.only(rows)
        return given.only(np.flatnonzero(np.isin(given.indices, rows)))
