"""Programs of one model: compiled ahead of their first call, and kept by shape."""

import contextlib
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from typing import Any

import jax
from flax import nnx

OnCompile = Callable[[str], None]


class Programs:
    """Calls pure functions `f(graphdef, state, *args, **static)` as compiled programs.

    Compiling ahead of the call keeps its time apart from that of the work. Where weights are sharded, what they are
    applied to is placed by the compiler: the cache is split by heads like the weights that fill it.

    Args:
      graphdef, state: the model. The state may still be on its way.
      on_compile: called with the name of a program before it is compiled.
      shapes: of a state that is on its way, which is all that compiling needs.

    Attributes:
      graphdef: of the model.
      compile_time: seconds spent compiling so far.
      is_rehearsal: whether calls are compiled, but not run; see `rehearsal`.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        state: nnx.State | Future[nnx.State],
        on_compile: OnCompile | None = None,
        shapes: nnx.State | None = None,
    ):
        self.graphdef, self._state = graphdef, state
        self.shapes = self.state if shapes is None else shapes
        self.on_compile = on_compile or (lambda name: None)
        self._compiled: dict[Hashable, Any] = {}
        self.compile_time = 0.0
        self.is_rehearsal = False

    @property
    def state(self) -> nnx.State:
        """The weights. Waits for those that are on their way, and raises what went wrong there."""
        if isinstance(self._state, Future):
            self._state = self._state.result()
        return self._state

    @contextlib.contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Inside, calls compile what they would run, and return the shapes of its results."""
        self.is_rehearsal = True
        try:
            yield
        finally:
            self.is_rehearsal = False

    def call(self, name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Runs a function; `options` are those of `compile`. Does not wait for the result."""
        program = self.compile(name, function, *args, **options)
        return jax.tree.map(_shape, program.out_info) if self.is_rehearsal else program(self.state, *args)

    def compile(
        self, name: str, function: Callable[..., Any], *args: Any, donate: tuple[str, ...] = (), **static: Hashable
    ) -> Any:
        """The program for these arguments (a `jax.stages.Compiled`), compiled if it is the first time.

        Args:
          name: for `on_compile`.
          args: arrays and pytrees of arrays, or of their shapes.
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
            self._compiled[key] = jitted.lower(self.graphdef, self.shapes, *args, **static).compile()
            self.compile_time += time.perf_counter() - start
        return self._compiled[key]


def _form(leaf: Any) -> Hashable:
    """What a program is compiled for: shape and dtype, and on several devices how they share the array."""
    return leaf.shape, leaf.dtype, _shared(leaf)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    """The same of a result. One device goes unnamed, as it does for arrays from the host."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_shared(leaf))


def _shared(leaf: Any) -> jax.sharding.Sharding | None:
    sharding = getattr(leaf, "sharding", None)
    return sharding if sharding is not None and len(sharding.device_set) > 1 else None
