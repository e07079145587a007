"""Blocks of one form are traced once.

Transformers unroll their layers, and JAX would run the same Python code for every one of them: of the seconds between a
command and its first token, tracing takes more than reading the compiled program from the disk.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
from flax import nnx

Result = TypeVar("Result")

_each = contextvars.ContextVar("each", default=False)


@contextlib.contextmanager
def traced_each() -> Iterator[None]:
    """Within it every module is traced by itself, as whoever listens in on what modules compute needs it."""
    token = _each.set(True)
    try:
        yield
    finally:
        _each.reset(token)


def traced_once(function: Callable[..., Result]) -> Callable[..., Result]:
    """`function(module, *args)`, traced for the first of several modules of equal structure alone.

    For the others its operations are written into the program again, with their weights and arguments in place: the
    program is the one that tracing each of them would have given. Only for functions that live as long as the process,
    since traces are found by the function.

    Args:
      function: pure; all that it reads comes as a module or as a pytree of arrays of equal shapes.
    """

    @functools.partial(jax.jit, static_argnums=0, inline=True)
    def traced(graphdef: nnx.GraphDef, state: nnx.State, *args: Any) -> Result:
        return function(nnx.merge(graphdef, state), *args)

    @functools.wraps(function)
    def call(module: nnx.Module, *args: Any) -> Result:
        if _each.get():
            return function(module, *args)
        return traced(*nnx.split(module), *args)

    return call
