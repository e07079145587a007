"""The meter against a clock that the test sets: what is fetched when, what is timed, what is told, and when it ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.metrics.counts import Counts, count
from train.metrics.meter import Meter
from train.metrics.rows import Writer
from vila_jax.errors import TrainingDiverged

COUNTS = Counts(tokens=90, token_slots=100, tiles=3, tile_slots=4, visual=30, lengths=(40, 50))


class Value:
    """A number on a device; notes when it is fetched."""

    def __init__(self, value, fetched):
        self.value, self.fetched = value, fetched

    def copy_to_host_async(self):
        pass

    def __array__(self, dtype=None, copy=None):
        self.fetched()
        return np.asarray(self.value)


class Kept(Writer):
    def __init__(self):
        self.rows, self.notes, self.left, self.closed = [], [], [], 0

    def advance(self, step, seconds_left):
        self.left.append((step, seconds_left))

    def write(self, row):
        self.rows.append(row)

    def note(self, step, text):
        self.notes.append((step, text))

    def close(self):
        self.closed += 1


class Device:
    """Steps of a second each, which start when the one before is over and they are dispatched."""

    def __init__(self):
        self.now = self.free = 0.0

    def step(self, seconds=1.0, **metrics):
        self.free = max(self.free, self.now) + seconds
        end = self.free

        def wait():
            self.now = max(self.now, end)

        given = dict(loss=1.5, accuracy=0.5, targets=20, grad_norm=2.0, skipped=0, skipped_in_a_row=0) | metrics
        return {name: Value(value, wait) for name, value in given.items()}


def run(meter, device, steps, *, wait=0.0, **metrics):
    for step in steps:
        device.now += wait
        meter.step(step, device.step(**metrics), COUNTS, wait)


def test_rates_are_of_the_device():
    device, kept = Device(), Kept()
    options = dict(steps=9, every=3, flops=lambda counts: 50.0, peak=200.0, clock=lambda: device.now)
    with Meter(
        [kept], **options, learning_rates=lambda step: {"decoder": step / 10}, bad=lambda: {"broken": 2}
    ) as meter:
        run(meter, device, range(1, 10), wait=0.1)
    assert [row.step for row in kept.rows] == [3, 6, 9] and kept.closed == 1
    for row in kept.rows:
        values = row.values
        assert values["step_seconds"] == pytest.approx(1.0)
        assert values["tokens_per_second"] == pytest.approx(90.0)
        assert values["samples_per_second"] == pytest.approx(2.0)
        assert values["tiles_per_second"] == pytest.approx(3.0)
        assert values["targets_per_second"] == pytest.approx(20.0)
        assert values["data_wait"] == pytest.approx(0.1)
        assert values["mfu"] == pytest.approx(0.25)
        assert values["fill/tokens"] == pytest.approx(0.9) and values["fill/tiles"] == pytest.approx(0.75)
        assert values["learning_rate/decoder"] == row.step / 10 and values["bad/broken"] == 2
        assert values["loss"] == 1.5 and values["memory/host"] > 2**20
    assert kept.left[0] == (1, None) and kept.left[1] == (2, pytest.approx(7.0)) and kept.left[-1][1] == 0


def test_the_host_stays_ahead():
    device, kept = Device(), Kept()
    meter = Meter([kept], steps=4, every=1, lag=2, clock=lambda: device.now)
    run(meter, device, range(1, 3))
    assert device.now == 0 and not kept.left, "nothing has been waited for"
    run(meter, device, range(3, 5))
    assert device.now == 2, "waited for the second, not for the fourth"
    meter.flush()
    assert device.now == 4
    meter.close()
    meter.close()
    assert kept.closed == 1


def test_waiting_for_data_is_the_time_that_it_takes():
    """A pipeline slower than the device sets the pace, and most of the time is waiting."""
    device, kept = Device(), Kept()
    with Meter([kept], steps=20, every=20, clock=lambda: device.now) as meter:
        run(meter, device, range(1, 21), wait=4.0)
    values = kept.rows[0].values
    assert values["step_seconds"] == pytest.approx(4.0) and values["data_wait"] == pytest.approx(1.0, abs=0.1)


def test_compiling_and_saving_are_not_timed():
    device, kept = Device(), Kept()
    with Meter([kept], steps=12, every=12, clock=lambda: device.now) as meter:
        device.now += 60  # before the first step: nothing knows of it
        run(meter, device, range(1, 5))
        device.now += 100
        meter.interrupted()  # a checkpoint
        run(meter, device, range(5, 9))
        device.now += 300
        jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", 250.0)
        run(meter, device, range(9, 13))
    values = kept.rows[0].values
    assert values["step_seconds"] == pytest.approx(1.0) and values["tokens_per_second"] == pytest.approx(90.0)
    assert values["compile_seconds"] == pytest.approx(250.0)


def test_a_closed_meter_hears_of_no_compilation():
    meter = Meter([], steps=1)
    meter.close()
    jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", 9.0)
    assert meter.compile_seconds == 0


def test_the_last_step_of_a_stopped_run_is_told():
    device, kept = Device(), Kept()
    with Meter([kept], steps=100, every=4, clock=lambda: device.now) as meter:
        run(meter, device, range(1, 8))
    assert [row.step for row in kept.rows] == [4, 7]


def test_too_many_skipped_steps_are_the_end():
    device, kept = Device(), Kept()
    meter = Meter([kept], steps=100, every=10, max_skipped=3, clock=lambda: device.now)
    run(meter, device, range(1, 3))
    bad = dict(loss=float("nan"), grad_norm=float("nan"))
    for step, row in ((3, 1), (4, 2), (5, 0), (6, 1), (7, 2)):
        meter.step(step, device.step(skipped=row, skipped_in_a_row=row, **bad), COUNTS, 0.0)
    with pytest.raises(TrainingDiverged, match="3 steps in a row") as caught:
        for step in range(8, 12):
            meter.step(step, device.step(skipped_in_a_row=step - 5, **bad), COUNTS, 0.0)
    assert caught.value.exit_code == 11 and caught.value.where == "step 8" and step == 10, "known two steps late"
    meter.close()  # and the rest is told without another end
    assert kept.rows[-1].step == 10 and kept.closed == 1
    assert [step for step, _ in kept.notes] == [3, 4, 6, 7, 8, 9, 10] and "loss nan" in kept.notes[0][1]


def test_metrics_of_jax():
    kept = Kept()
    double = jax.jit(lambda x: {"loss": 2 * x, "targets": jnp.int32(3)})
    with Meter([kept], steps=5, every=2) as meter:
        for step in range(1, 6):
            meter.step(step, double(jnp.float32(step)), COUNTS, 0.0)
    assert [(row.step, row.values["loss"], row.values["targets"]) for row in kept.rows] == [
        (2, 4, 3),
        (4, 8, 3),
        (5, 10, 3),
    ]


def test_hosts_add_up():
    device, kept = Device(), Kept()
    options = dict(steps=5, every=5, flops=lambda counts: 50.0, peak=200.0, clock=lambda: device.now)
    with Meter([kept], **options, hosts=4) as meter:
        run(meter, device, range(1, 6))
    values = kept.rows[0].values
    assert values["tokens_per_second"] == pytest.approx(360.0) and values["mfu"] == pytest.approx(1.0)
    assert values["targets_per_second"] == pytest.approx(20.0), "of the whole batch already"


def test_what_a_batch_holds():
    batch = {
        "segments": np.array([[[1, 1, 1, 2, 2, 3]], [[1, 1, 1, 1, 2, 2]]]),
        "source": np.array([[[0, 1, -2, 2, -1, -1]], [[-1, -1, 0, 1, -1, -1]]]),
        "used": np.array([[[5, 2]], [[4, 1]]]),
        "pixels": np.zeros((2, 1, 3, 3, 4, 4)),
    }
    assert count(batch) == Counts(tokens=9, token_slots=12, tiles=3, tile_slots=6, visual=5, lengths=(3, 2, 4))
    assert count({name: array[:, 0] for name, array in batch.items()}) == count(batch)
