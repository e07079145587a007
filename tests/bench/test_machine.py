"""Rates from a clock that the test sets: what is counted, and when matrices stop growing."""

import pytest

from vila_jax.bench import machine


@pytest.fixture
def clock(monkeypatch):
    """Makes every call take the seconds that the size of its array is given in `seconds`."""
    seconds, called = {}, []

    def timed(function, a):
        called.append(a.shape[0])
        return seconds[a.shape[0]], function(a)

    monkeypatch.setattr(machine, "_seconds", timed)
    return seconds, called


def test_matrices_grow_until_a_product_can_be_timed(clock):
    seconds, called = clock
    seconds |= {256: 0.001, 512: 0.1}
    assert machine.measure_matmul("float32", seconds=0.0) == pytest.approx(2 * 512**3 / 0.1)
    assert called == [256, 512]


def test_bandwidth_counts_bytes_read_and_written(clock):
    seconds, _ = clock
    seconds[1024] = 0.5
    assert machine.measure_bandwidth(seconds=0.0, size=4096) == pytest.approx(2 * 4096 / 0.5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_product_is_made_in_the_dtype_asked_for(monkeypatch, dtype):
    seen = []
    monkeypatch.setattr(machine, "_seconds", lambda function, a: (1.0, seen.append(function(a).dtype.name)))
    machine.measure_matmul(dtype, seconds=0.0)
    assert seen == [dtype]
