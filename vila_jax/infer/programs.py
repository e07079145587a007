"""Programs of one model: compiled ahead of their first call, and kept by shape."""

import time
from collections.abc import Callable, Hashable
from typing import Any

import jax
from flax import nnx

OnCompile = Callable[[str], None]


class Programs:
    """Calls pure functions `f(graphdef, state, *args, **static)` as compiled programs.

    Compiling ahead of the call keeps its time apart from that of the work. Where weights are sharded, what they are
    applied to is placed by the compiler: the cache is split by heads like the weights that fill it.

    Args:
      graphdef, state: the model; kept as attributes.
      on_compile: called with the name of a program before it is compiled.

    Attributes:
      compile_time: seconds spent compiling so far.
    """

    def __init__(self, graphdef: nnx.GraphDef, state: nnx.State, on_compile: OnCompile | None = None):
        self.graphdef, self.state = graphdef, state
        self.on_compile = on_compile or (lambda name: None)
        self._compiled: dict[Hashable, Any] = {}
        self.compile_time = 0.0

    def call(self, name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Runs a function; `options` are those of `compile`. Does not wait for the result."""
        return self.compile(name, function, *args, **options)(self.state, *args)

    def compile(
        self, name: str, function: Callable[..., Any], *args: Any, donate: tuple[str, ...] = (), **static: Hashable
    ) -> Callable[..., Any]:
        """The program for these arguments, compiled if it is the first time.

        Args:
          name: for `on_compile`.
          args: arrays and pytrees of arrays.
          donate: parameters whose memory the results may take over.
          static: keyword arguments that are part of the program.
        """
        leaves, structure = jax.tree.flatten(args)
        key = (function, structure, tuple(map(_form, leaves)), donate, tuple(static.items()))
        if key not in self._compiled:
            jax.block_until_ready(args)  # work under way is not compile time
            start = time.perf_counter()
            self.on_compile(name)
            jitted = jax.jit(function, static_argnames=("graphdef", *static), donate_argnames=donate)
            self._compiled[key] = jitted.lower(self.graphdef, self.state, *args, **static).compile()
            self.compile_time += time.perf_counter() - start
        return self._compiled[key]


def _form(leaf: Any) -> Hashable:
    """What a program is compiled for: shape and dtype, and on several devices how they share the array."""
    sharding = getattr(leaf, "sharding", None)
    several = sharding is not None and len(sharding.device_set) > 1
    return leaf.shape, leaf.dtype, sharding if several else None
