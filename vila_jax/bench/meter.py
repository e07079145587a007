"""Watching a model's programs: what each call took, and what each program costs.

    with metered(model.engine) as meter:
        model.generate(...)                      # compiles
        with meter.watch() as calls:
            model.generate(...)
        [(call.name, call.seconds, call.program.flops) for call in calls]

The engine runs everything as named programs (`vila_jax.infer.programs`). Measuring there, a bench knows nothing of the
methods that it measures: what a budget does inside the tower, behind it or inside the decoder is in the programs.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from vila_jax.bench.traced import count_flops
from vila_jax.infer.engine import Engine
from vila_jax.infer.programs import Programs


@dataclasses.dataclass(frozen=True)
class Program:
    """What is known of a compiled program.

    Attributes:
      name: `vision tower`, `prefill`, ...
      compile_time: seconds.
      flops: see `vila_jax.bench.traced`.
      bytes: memory of a device that XLA has planned for it: arguments (weights among them), results and temporaries.
      result: shapes and dtypes of what it returns.
    """

    name: str
    compile_time: float
    flops: int
    bytes: int
    result: Any


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a program.

    Attributes:
      name: of the program.
      seconds: until its result was there.
      program: which it was.
      args, options: what it was called with; keeps arrays alive.
      again: calls it once more, with the weights and whatever arguments it is given.
    """

    name: str
    seconds: float
    program: Program
    args: tuple[Any, ...]
    options: dict[str, Any]
    again: Callable[..., Any]


class Meter(Programs):
    """A model's programs, compiled anew. Watched calls wait for their result; others are as fast as ever."""

    def __init__(self, programs: Programs):
        super().__init__(programs.graphdef, programs.state, programs.on_compile, programs.shapes)
        self._known: dict[int, Program] = {}  # by the identity of the executable, which lives as long as this
        self._calls: list[Call] | None = None

    @contextlib.contextmanager
    def watch(self) -> Iterator[list[Call]]:
        """Yields a list that is filled with the calls made inside."""
        self._calls = []
        try:
            yield self._calls
        finally:
            self._calls = None

    def call(self, name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if self._calls is None:
            return super().call(name, function, *args, **options)
        program = self.compile(name, function, *args, **options)
        jax.block_until_ready(args)
        start = time.perf_counter()
        result = jax.block_until_ready(program(self.state, *args))
        seconds, again = time.perf_counter() - start, functools.partial(program, self.state)
        self._calls.append(Call(name, seconds, self._known[id(program)], args, options, again))
        return result

    def compile(
        self, name: str, function: Callable[..., Any], *args: Any, donate: tuple[str, ...] = (), **static: Hashable
    ) -> Any:
        before = self.compile_time
        program = super().compile(name, function, *args, donate=donate, **static)
        if id(program) not in self._known:
            traced = jax.make_jaxpr(functools.partial(function, self.graphdef, **static), return_shape=True)
            jaxpr, result = traced(self.state, *args)
            seconds = self.compile_time - before
            self._known[id(program)] = Program(name, seconds, count_flops(jaxpr.jaxpr), _planned_bytes(program), result)
        return program

    @property
    def programs(self) -> list[Program]:
        """All that were compiled so far."""
        return list(self._known.values())


def _planned_bytes(program: Any) -> int:
    plan = program.memory_analysis()
    parts = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    return parts - plan.alias_size_in_bytes


@contextlib.contextmanager
def metered(engine: Engine) -> Iterator[Meter]:
    """Lends an engine programs that are watched, and that are compiled from nothing: the compile cache is not read."""
    own = engine.phases.programs
    meter = Meter(own)
    engine.phases.programs = meter
    try:
        with _no_compile_cache():
            yield meter
    finally:
        engine.phases.programs = own


@contextlib.contextmanager
def _no_compile_cache() -> Iterator[None]:
    enabled = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # or the choice made at the first compilation would stand
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()
