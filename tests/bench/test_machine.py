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


class Device:
    def __init__(self, kind, platform="gpu", process=0):
        self.device_kind, self.platform, self.process_index = kind, platform, process


@pytest.mark.parametrize(
    ("kind", "flops"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
    ],
)
def test_peaks_of_data_sheets(kind, flops):
    found = machine.peak([Device(kind)] * 4, "bfloat16")
    assert found.flops == 4 * flops and found.source == f"4 x {kind} by data sheet"


def test_unknown_peaks_are_measured(monkeypatch):
    monkeypatch.setattr(machine, "measure_matmul", lambda dtype: 5e12 if dtype == "float32" else 7e12)
    known, other = Device("NVIDIA H200"), Device("Radeon")
    assert machine.peak([known], "float32") == machine.Peak(5e12, "1 x NVIDIA H200 by measured float32 products")
    assert machine.peak([other] * 2, "bfloat16").flops == 14e12


def test_virtual_devices_share_a_cpu(monkeypatch):
    monkeypatch.setattr(machine, "measure_matmul", lambda dtype: 5e9)
    monkeypatch.setattr(machine, "cpu_name", lambda: "Some CPU")
    devices = [Device("cpu", "cpu", process) for process in (0, 0, 1, 1)]
    assert machine.peak(devices, "float32") == machine.Peak(1e10, "2 x Some CPU by measured float32 products")
