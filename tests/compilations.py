"""Counting XLA compilations."""

import contextlib

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"
_compilations = 0


def _listen(event: str, duration: float, **_: object) -> None:
    global _compilations  # noqa: PLW0603
    _compilations += event == _EVENT


jax.monitoring.register_event_duration_secs_listener(_listen)


@contextlib.contextmanager
def counter():
    """Yields a function that says how many programs were compiled (or fetched from the cache) since the start."""
    start = _compilations
    yield lambda: _compilations - start
