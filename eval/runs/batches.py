"""Work in the order of its coming, prepared ahead by threads, and gathered in batches of one shape."""

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from eval.runs.prepare import Prepared

A = TypeVar("A")
B = TypeVar("B")

_MOST_WAITING = 16  # batches' worth of prepared samples that are held, with their pictures, before one is sent short


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


def batches(samples: Iterable[Prepared], size: int) -> Iterator[list[Prepared]]:
    """Batches of samples that have one shape together: full ones as soon as they are, then what is left.

    What is left joins samples of larger buckets that differ in lengths alone, so that few shapes are compiled for it.
    """
    waiting: dict[tuple, list[Prepared]] = {}
    held = 0
    for sample in samples:
        own = waiting.setdefault(sample.bucket, [])
        own.append(sample)
        held += 1
        if len(own) < size and held >= _MOST_WAITING * size:
            own = max(waiting.values(), key=len)
        if len(own) == size or held >= _MOST_WAITING * size:
            yield own[:]
            held -= len(own)
            own.clear()
    left: dict[object, list[Prepared]] = {}
    for bucket in sorted((b for b, own in waiting.items() if own), key=lambda b: b[1], reverse=True):
        left.setdefault(bucket[0], []).extend(waiting[bucket])
    for own in left.values():
        yield from (own[start : start + size] for start in range(0, len(own), size))
