"""The engine: lays out a batch, compiles each program once, runs prefill and chunks of decode steps."""

import dataclasses
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Int

from vila_jax.budgets import Budget
from vila_jax.hf.config import ModelConfig
from vila_jax.infer.decode import Progress, State, decode_chunk
from vila_jax.infer.layout import Counts, Layout, Planner, Request
from vila_jax.infer.prefill import prefill, prompt_logits, selection
from vila_jax.infer.sampler import Sampler, SamplingOptions
from vila_jax.text.slots import bucket
from vila_jax.vision.preprocess import ProcessedImage

CHUNK = 8
"""Decode steps per program: enough to hide the dispatch, few enough to stream."""

OnCompile = Callable[[str], None]


@dataclasses.dataclass
class Timings:
    """Seconds of wall time. `compile` is not part of the others.

    Attributes:
      prefill: from laid-out arrays to the first token.
      decode: all further tokens.
    """

    compile: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Tokens that became known together: for every real row the new ids, and whether it is finished."""

    tokens: list[list[int]]
    done: list[bool]


class Run:
    """One batch on its way: iterate for chunks of tokens; `stop(row)` ends a row early."""

    def __init__(self, counts: list[Counts], chunks: Iterator[Chunk], timings: Timings, stopped: set[int]):
        self.counts, self.timings = counts, timings
        self._chunks, self._stopped = chunks, stopped

    def __iter__(self) -> Iterator[Chunk]:
        return self._chunks

    def stop(self, row: int) -> None:
        """Ends a row before its limit (a stop string was met)."""
        self._stopped.add(row)


class Engine:
    """Runs one model on the devices that hold its weights.

    Args:
      graphdef, state: the model, from `vila_jax.hf.load`.
      config: its description.
      dtype: of the computation and the cache.
      on_compile: called with the name of a program before it is compiled.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        state: State,
        config: ModelConfig,
        *,
        dtype: str,
        on_compile: OnCompile | None = None,
    ):
        self.graphdef, self.state, self.config = graphdef, state, config
        self.planner = Planner(config, dtype, config.pad_id or 0)
        self.on_compile = on_compile or (lambda name: None)
        self._programs: dict[Hashable, Any] = {}

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sequence[SamplingOptions],
        new_tokens: int,
        *,
        budget: Budget | None,
        end_tokens: Sequence[int],
    ) -> Run:
        """Starts a batch. Errors of the requests are raised here, before anything runs on the device."""
        layout = self.planner.layout(requests, budget, new_tokens)
        timings, stopped = Timings(), set[int]()
        chunks = self._chunks(layout, list(sampling), new_tokens, list(end_tokens), timings, stopped)
        return Run(layout.counts, chunks, timings, stopped)

    def logits(self, request: Request, *, budget: Budget | None) -> np.ndarray:
        """Float32 logits `[T, C]` at every position of a spliced prompt."""
        layout = self.planner.layout([request], budget, 0)
        program = self._program("logits", prompt_logits, (self.state, layout.prompts), {"spec": layout.spec})
        logits, lengths = program(self.state, layout.prompts)
        return np.asarray(logits[0])[: int(lengths[0])]

    def selection(self, image: ProcessedImage, *, budget: Budget | None) -> Int[np.ndarray, " kept"]:
        """Flat indices (see `vila_jax.vision.geometry`) of the patches of a picture that become tokens, in token order.

        The decoder does not run; without a budget nothing does.
        """
        if self.planner.effective(budget) is None:
            return image.geometry.order()
        layout = self.planner.layout([Request([self.config.image_token_id], [image])], budget, 0)
        program = self._program("selection", selection, (self.state, layout.prompts), {"spec": layout.spec})
        chosen = program(self.state, layout.prompts)
        return np.asarray(chosen.indices[0])[np.asarray(chosen.valid[0])]

    def _chunks(
        self,
        layout: Layout,
        sampling: list[SamplingOptions],
        new_tokens: int,
        end_tokens: list[int],
        timings: Timings,
        stopped: set[int],
    ) -> Iterator[Chunk]:
        rows, batch = len(sampling), layout.prompts.token_ids.shape[0]
        sampler = Sampler.of(sampling + [SamplingOptions()] * (batch - rows))
        limit = jnp.asarray([new_tokens] * rows + [0] * (batch - rows), jnp.int32)
        ends = jnp.asarray(end_tokens or [-1], jnp.int32)
        longest = max(count.prompt for count in layout.counts) + new_tokens
        length = max(bucket(longest, self.config.context_length), layout.prompts.token_ids.shape[1])
        static = {"spec": layout.spec, "cache_length": length}
        progress: Progress = self._timed(
            timings, "prefill", prefill, (self.state, layout.prompts, sampler, limit, ends), static
        )
        first, done = np.asarray(progress.token)[:rows], np.asarray(progress.done)[:rows]
        if not done.all():  # compiled before the first token is handed out, so that a stream does not stall after it
            self._compiled(timings, "decode", decode_chunk, (self.state, progress, sampler, ends), {"steps": CHUNK})
        yield Chunk([[int(token)] for token in first], done.tolist())
        while not done.all():
            if stopped:
                mask = jnp.asarray([row in stopped for row in range(batch)])
                progress = progress._replace(done=progress.done | mask)
                if bool(jnp.all(progress.done)):
                    return
            progress, tokens = self._timed(
                timings, "decode", decode_chunk, (self.state, progress, sampler, ends), {"steps": CHUNK}
            )
            done = np.asarray(progress.done)[:rows]
            yield Chunk([row[row >= 0].tolist() for row in np.asarray(tokens)[:rows]], done.tolist())

    def _timed(self, timings: Timings, name: str, function: Any, args: tuple[Any, ...], static: dict[str, Any]) -> Any:
        """Runs a program to its end and adds the time to the phase of that name."""
        program = self._compiled(timings, name, function, args, static)
        start = time.perf_counter()
        result = jax.block_until_ready(program(*args))
        setattr(timings, name, getattr(timings, name) + time.perf_counter() - start)
        return result

    def _compiled(
        self, timings: Timings, name: str, function: Any, args: tuple[Any, ...], static: dict[str, Any]
    ) -> Any:
        """The program for these arguments, compiled if this is the first time."""
        start = time.perf_counter()
        program = self._program(name, function, args, static)
        timings.compile += time.perf_counter() - start
        return program

    def _program(self, name: str, function: Any, args: tuple[Any, ...], static: dict[str, Any]) -> Any:
        """The compiled program for these shapes; compiling ahead of the call keeps its time apart."""
        leaves, structure = jax.tree.flatten(args[1:])  # the weights, args[0], are always the same
        shapes = tuple(
            (np.shape(leaf), str(np.asarray(leaf).dtype if np.isscalar(leaf) else leaf.dtype)) for leaf in leaves
        )
        key = (name, structure, shapes, tuple(static.items()))
        if key not in self._programs:
            self.on_compile(name)
            self._programs[key] = function.lower(self.graphdef, *args, **static).compile()
        return self._programs[key]
