"""Many requests: prepared ahead by threads, and gathered in batches of one shape."""

import collections
import concurrent.futures
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, TypeVar

from vila_jax.budgets import Budget
from vila_jax.infer.layout import Planner, Request

Bucket = tuple[Hashable, tuple[int, ...]]
"""Things of one bucket have one shape, and so do as many of them together. The second element orders buckets: a thing
fits in a batch of a larger bucket whose first element is the same."""


A = TypeVar("A")
B = TypeVar("B")

_MOST_WAITING = 16
"""Batches' worth of prepared things that are held, with their pictures, before one is sent short."""


def bucket_of(planner: Planner, request: Request, budget: Budget | None, new_tokens: int) -> Bucket:
    """The bucket of a request.

    Raises:
      ContextLengthError: it does not fit the model's context with so many new tokens.
      BudgetError: the budget cannot be met.
    """
    layout = planner.layout([request], budget, new_tokens)
    tiles: dict[Any, list[int]] = {}
    for image in request.images:
        tiles.setdefault(image.geometry.corner, []).append(len(image.pixels))
    shown = sorted((corner or 0, sum(counts), max(counts) > 1) for corner, counts in tiles.items())
    lengths = (layout.prompts.token_ids.shape[1], *layout.cache_lengths)
    return (len(request.images), tuple(shown), layout.schedule), lengths


def ahead(work: Callable[[A], B], inputs: Iterable[A], *, workers: int, window: int) -> Iterator[B]:
    """The results of `work`, in order; up to `window` of them are made by threads before they are asked for."""
    with concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="prepare") as pool:
        waiting: collections.deque[concurrent.futures.Future[B]] = collections.deque()
        try:
            for value in inputs:
                waiting.append(pool.submit(work, value))
                if len(waiting) >= window:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def batches(things: Iterable[A], size: int, bucket: Callable[[A], Bucket]) -> Iterator[list[A]]:
    """Batches of things that have one shape together: full ones as soon as they are, then what is left.

    Args:
      things: in the order of their coming.
      size: of a full batch.
      bucket: of a thing.

    What is left joins things of larger buckets that differ in lengths alone, so that few shapes are compiled for it.
    """
    waiting: dict[Bucket, list[A]] = {}
    held = 0
    for thing in things:
        own = waiting.setdefault(bucket(thing), [])
        own.append(thing)
        held += 1
        if len(own) < size and held >= _MOST_WAITING * size:
            own = max(waiting.values(), key=len)
        if len(own) == size or held >= _MOST_WAITING * size:
            yield own[:]
            held -= len(own)
            own.clear()
    left: dict[Hashable, list[A]] = {}
    for kind, lengths in sorted((b for b, own in waiting.items() if own), key=lambda b: b[1], reverse=True):
        left.setdefault(kind, []).extend(waiting[kind, lengths])
    for own in left.values():
        yield from (own[start : start + size] for start in range(0, len(own), size))
