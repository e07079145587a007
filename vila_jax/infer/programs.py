"""Programs of one model: compiled ahead of their first call, by other threads if one likes, and kept by shape."""

import contextlib
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
from flax import nnx

OnCompile = Callable[[str], None]


class _Program:
    """A program on its way: traced by whoever asks first, compiled by whoever needs it first, while others wait."""

    def __init__(self, trace: Callable[[], jax.stages.Lowered]):
        self._lock = threading.Lock()
        self._trace: Callable[[], jax.stages.Lowered] | None = trace
        self._lowered: jax.stages.Lowered | None = None
        self._compiled: jax.stages.Compiled | None = None

    @property
    def is_compiled(self) -> bool:
        return self._compiled is not None

    def results(self) -> Any:
        """What it returns, as shapes."""
        with self._lock:
            return self._traced().out_info if self._compiled is None else self._compiled.out_info

    def compiled(self) -> jax.stages.Compiled:
        """Ready to be called."""
        with self._lock:
            if self._compiled is None:
                self._compiled = self._traced().compile()
                self._lowered = None
            return self._compiled

    def _traced(self) -> jax.stages.Lowered:
        if self._lowered is None:
            assert self._trace is not None
            self._lowered = self._trace()
            self._trace = None  # and with it the arguments, which may be large
        return self._lowered


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
      compile_time: seconds in which callers compiled, or waited for threads that did.
    """

    is_rehearsal = False
    """Whether calls run nothing; see `Rehearsal`."""

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
        self._programs: dict[Hashable, _Program] = {}
        self.compile_time = 0.0

    @property
    def state(self) -> nnx.State:
        """The weights. Waits for those that are on their way, and raises what went wrong there."""
        if isinstance(self._state, Future):
            self._state = self._state.result()
        return self._state

    @contextlib.contextmanager
    def rehearsal(self) -> Iterator["Rehearsal"]:
        """Programs whose calls run nothing; on leaving, all that were called are compiled."""
        with ThreadPoolExecutor(1, thread_name_prefix="compile") as thread:
            rehearsal = Rehearsal(self, thread)
            yield rehearsal
            rehearsal.wait()

    def call(self, name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Runs a function; `options` are those of `compile`. Does not wait for the result."""
        return self.compile(name, function, *args, **options)(self.state, *args)

    def compile(self, name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """The program for these arguments (a `jax.stages.Compiled`), compiled if it is the first time.

        Args:
          name: for `on_compile`.
          args: arrays and pytrees of arrays, or of their shapes.
          options: `donate`, names of parameters whose memory the results may take over; the others are static keyword
            arguments that are part of the program.
        """
        key = _key(function, args, **options)
        program = self._programs.get(key)
        if program is None:
            jax.block_until_ready(args)  # work under way is not compile time
            program = self._program(key, name, function, *args, **options)
        if not program.is_compiled:
            start = time.perf_counter()
            try:
                program.compiled()
            except BaseException:
                self._programs.pop(key, None)
                raise
            self.compile_time += time.perf_counter() - start
        return program.compiled()

    def _program(
        self,
        key: Hashable,
        name: str,
        function: Callable[..., Any],
        *args: Any,
        donate: tuple[str, ...] = (),
        **static: Hashable,
    ) -> _Program:
        """The program under a key, perhaps one of which nothing is done yet."""

        def trace() -> jax.stages.Lowered:
            self.on_compile(name)
            jitted = jax.jit(function, static_argnames=("graphdef", *static), donate_argnames=donate)
            return jitted.lower(self.graphdef, self.shapes, *args, **static)

        return self._programs.setdefault(key, _Program(trace))


class Rehearsal(Programs):
    """Compiles what is called, for the programs that it is made from, and returns the shapes of results.

    On a single device a thread compiles one program while the next one is traced. On several the compiler decides how
    results are shared, and every program waits for the one before it.
    """

    is_rehearsal = True

    def __init__(self, programs: Programs, thread: ThreadPoolExecutor):
        super().__init__(programs.graphdef, programs._state, programs.on_compile, programs.shapes)
        self._programs, self._thread = programs._programs, thread
        self._is_shared = any(_shared(leaf) is not None for leaf in jax.tree.leaves(self.shapes))
        self._pending: list[Future[Any]] = []

    def call(self, name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """The shapes of what the function returns."""
        if self._is_shared:
            return jax.tree.map(_shape, self.compile(name, function, *args, **options).out_info)
        program = self._program(_key(function, args, **options), name, function, *args, **options)
        results = jax.tree.map(_shape, program.results())
        self._pending.append(self._thread.submit(program.compiled))
        return results

    def wait(self) -> None:
        """Waits for everything that is being compiled, and raises what went wrong there."""
        for one in self._pending:
            one.result()


def _key(function: Callable[..., Any], args: Any, donate: tuple[str, ...] = (), **static: Hashable) -> Hashable:
    """What a program is known by."""
    leaves, structure = jax.tree.flatten(args)
    return function, structure, tuple(map(_form, leaves)), donate, tuple(static.items())


def _form(leaf: Any) -> Hashable:
    """What a program is compiled for: shape and dtype, and on several devices how they share the array."""
    return leaf.shape, leaf.dtype, _shared(leaf)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    """The same of a result. One device goes unnamed, as it does for arrays from the host."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_shared(leaf))


def _shared(leaf: Any) -> jax.sharding.Sharding | None:
    sharding = getattr(leaf, "sharding", None)
    return sharding if sharding is not None and len(sharding.device_set) > 1 else None
