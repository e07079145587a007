"""Numbers as people read them."""

import pytest

from vila_jax.cli import units


@pytest.mark.parametrize(
    ("value", "text"), [(0.0004, "0 ms"), (0.0123, "12 ms"), (0.9994, "999 ms"), (3.21, "3.2 s"), (75.0, "75.0 s")]
)
def test_seconds(value, text):
    assert units.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (524_288, "512 KiB"),
        (14_126_854_144, "13.2 GiB"),
        (2**50, "1,024 TiB"),
    ],
)
def test_size(value, text):
    assert units.size(value) == text


@pytest.mark.parametrize(("value", "text"), [(408, "408"), (20_979_712, "21.0 M"), (7_063_427_072, "7.06 B")])
def test_count(value, text):
    assert units.count(value) == text


@pytest.mark.parametrize(("value", "text"), [(9.994, "9.99"), (9.995, "10.0"), (99.96, "100"), (1873.6, "1,874")])
def test_number(value, text):
    assert units.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(7.9e14, "790 TFLOP/s"), (4.3e12, "4.30 TFLOP/s"), (1.43e9, "1.43 GFLOP/s"), (12, "12.0 FLOP/s")],
)
def test_rate(value, text):
    assert units.rate(value, "FLOP/s") == text
