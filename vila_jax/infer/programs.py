"""Programs of one model: compiled ahead of their first call, kept by shape, placed on the model's devices."""

import time
from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vila_jax.dist.rules import ShardingRules, sharding_for
from vila_jax.infer.decode import Progress
from vila_jax.nn.config import DecoderConfig
from vila_jax.nn.decoder import empty_cache

OnCompile = Callable[[str], None]


class Programs:
    """Calls pure functions `f(graphdef, state, *args, **static)` as compiled programs.

    Compiling ahead of the call keeps its time apart from that of the work.

    Without a mesh everything lies on the default device. Over a mesh the weights lie as they were loaded, the cache is
    split by heads like the weights that make it, and everything else, being small, is on every device. All of it is
    stated, not left to the compiler, because the results of one program have to lie where the next one expects them.

    Args:
      graphdef, state: the model.
      mesh, rules: how it was placed.
      on_compile: called with the name of a program before it is compiled.

    Attributes:
      compile_time: seconds spent compiling so far.
      everywhere: the placement of small arrays over a mesh, else None.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        state: nnx.State,
        *,
        mesh: Mesh | None,
        rules: ShardingRules | None,
        on_compile: OnCompile | None,
    ):
        self._graphdef, self._state = graphdef, state
        self._mesh, self._rules = mesh, rules
        self.everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())
        self._on_compile = on_compile or (lambda name: None)
        self._compiled: dict[Hashable, Any] = {}
        self.compile_time = 0.0

    def call(self, name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Runs a function; `options` are those of `compile`. Does not wait for the result."""
        args = self._placed(args)
        return self.compile(name, function, *args, **options)(self._state, *args)

    def compile(
        self,
        name: str,
        function: Callable[..., Any],
        *args: Any,
        donate: tuple[str, ...] = (),
        out: Any = None,
        **static: Hashable,
    ) -> Callable[..., Any]:
        """The program for these arguments, compiled if it is the first time.

        Args:
          name: for `on_compile`.
          args: arrays and pytrees of arrays; host arrays are copied to the devices.
          donate: parameters whose memory the results may take over.
          out: over a mesh, where results lie (a prefix of their tree); everywhere by default.
          static: keyword arguments that are part of the program.
        """
        args = self._placed(args)
        leaves, structure = jax.tree.flatten(args)
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        key = (function, structure, shapes, tuple(static.items()))
        if key not in self._compiled:
            jax.block_until_ready(args)  # work under way is not compile time
            start = time.perf_counter()
            self._on_compile(name)
            jitted = jax.jit(
                function,
                static_argnames=("graphdef", *static),
                donate_argnames=donate,
                out_shardings=self.everywhere if out is None else out,
            )
            self._compiled[key] = jitted.lower(self._graphdef, self._state, *args, **static).compile()
            self.compile_time += time.perf_counter() - start
        return self._compiled[key]

    def progress_placement(self, config: DecoderConfig, batch: int) -> Progress | None:
        """Where a `Progress` lies, to be passed as `out`."""
        if self._mesh is None:
            return None
        keys, _ = jax.eval_shape(lambda: empty_cache(config, batch, 1, "float32"))[0]
        axes = (None,) * (len(keys.shape) - 3) + ("kv_heads", None, None)
        cache = sharding_for(axes, keys.shape, self._mesh, self._rules)
        return Progress._make([cache] + [self.everywhere] * (len(Progress._fields) - 1))

    def _placed(self, args: Any) -> Any:
        """Copies host arrays to every device of the mesh; arrays of earlier programs are where they have to be."""
        if self.everywhere is None:
            return args
        return jax.tree.map(lambda x: jax.device_put(x, self.everywhere) if isinstance(x, np.ndarray) else x, args)
