"""Threads that work ahead, and batches of one shape."""

import threading
import time

import pytest

from vila_jax.batches import ahead, batches


def test_results_come_in_order_whatever_takes_long():
    def work(number):
        time.sleep(0.02 if number % 3 == 0 else 0)
        return number * number

    assert list(ahead(work, range(20), workers=4, window=6)) == [n * n for n in range(20)]


def test_work_is_done_ahead_but_no_further_than_the_window():
    begun, ready = [], threading.Event()

    def work(number):
        begun.append(number)
        if len(begun) == 5:
            ready.set()
        return number

    results = ahead(work, iter(range(100)), workers=2, window=5)
    assert next(results) == 0
    assert ready.wait(5)
    assert sorted(begun) == [0, 1, 2, 3, 4]
    assert list(results) == list(range(1, 100))


def test_an_error_of_the_work_is_raised_where_its_result_would_be():
    results = ahead(lambda n: 1 // (n - 2), range(5), workers=2, window=3)
    assert [next(results), next(results)] == [-1, -1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def thing(index, shape, *lengths):
    return index, (shape, lengths)


def indices(things, size):
    return [[index for index, _ in own] for own in batches(iter(things), size, lambda one: one[1])]


def test_full_batches_of_a_shape_come_first_and_what_is_left_joins_longer_ones():
    things = [thing(0, "a", 32), thing(1, "b", 32), thing(2, "a", 64), thing(3, "a", 32)]
    things += [thing(4, "a", 64), thing(5, "a", 96), thing(6, "b", 32), thing(7, "b", 32)]
    found = indices(things, 2)
    assert found[:3] == [[0, 3], [2, 4], [1, 6]]
    assert sorted(found[3:]) == [[5], [7]]
    assert indices([thing(0, "a", 32), thing(1, "a", 64), thing(2, "b", 64)], 4) == [[1, 0], [2]]


def test_not_too_many_things_wait():
    """Of a hundred shapes none ever fills a batch of four; only 64 things are held before some are sent."""
    waiting, most = 0, 0

    def things():
        nonlocal waiting, most
        for index in range(300):
            waiting += 1
            most = max(most, waiting)
            yield thing(index, index % 100, 32)

    seen = []
    for own in batches(things(), 4, lambda one: one[1]):
        waiting -= len(own)
        seen += [index for index, _ in own]
    assert sorted(seen) == list(range(300)) and most == 64
