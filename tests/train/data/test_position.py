"""A run that stopped behind any batch goes on with the next, bit for bit, however far its prefetch had read."""

import json
import subprocess
import sys
import time

import grain
import numpy as np
import pytest

from train.data.labels import IGNORED
from train.data.packing import Laid, RowShape, pack
from train.data.position import Positioned
from train.data.records import BadSample, Caption
from train.data.stream import samples
from vila_jax.errors import CheckpointError

SHAPE = RowShape(tokens=24, tiles=2, bins=3)
RECORDS = 150


def laid(record: Caption) -> Laid:
    """A sample of a length of its own; every seventh is bad."""
    number = int(record.id)
    if number % 7 == 3:
        raise BadSample("empty conversation", "planted", record.id)
    length = 4 + number * 5 % 11
    source = np.full(length, -1, np.int32)
    tiles = number % 2
    source[1 : 1 + tiles] = 0
    ids = np.arange(length, dtype=np.int32) + 100 * number
    pixels = np.full((tiles, 3, 2, 2), number, np.float32)
    return Laid(ids, np.where(source >= 0, IGNORED, ids).astype(np.int32), source, pixels)


def stream(prefetch: int, threads: int = 4, records: int = RECORDS, rows: int = 2) -> Positioned:
    """Shuffled records, laid out on threads, packed, some rows to a batch."""
    captions = grain.MapDataset.source([Caption(str(i), "", ()) for i in range(records)]).seed(5).shuffle()
    packed = pack(samples(captions, laid, threads=threads), SHAPE, 1, seed=5)
    return Positioned(iter(packed.batch(rows, drop_remainder=True)), prefetch)


def as_json(batch) -> str:
    return json.dumps({name: value.tolist() for name, value in batch.items()}, sort_keys=True)


def counted(state) -> dict:
    """The counts of bad samples within a position."""
    found = state["source"]
    while "bad" not in found:
        found = found["parent"]
    return {"seen": found["seen"], "bad": found["bad"]}


@pytest.fixture(scope="module")
def uninterrupted():
    """Every batch, with the position behind it; without prefetch."""
    batches = stream(0)
    return [(as_json(batch), batches.state()) for batch in batches]


def test_the_position_is_that_of_the_batch_taken(uninterrupted):
    for prefetch in 1, 3:
        batches = stream(prefetch)
        for number, (expected, state) in enumerate(uninterrupted, start=1):
            assert as_json(next(batches)) == expected
            if number % 5 == 0:
                time.sleep(0.01)  # the thread reads on
            assert batches.state() == state and state["taken"] == number
        with pytest.raises(StopIteration):
            next(batches)


@pytest.mark.parametrize(("prefetch", "threads"), [(0, 4), (2, 4), (4, 1)])
def test_stopped_behind_any_batch(uninterrupted, prefetch, threads):
    assert len(uninterrupted) > 15
    for taken in range(0, len(uninterrupted), 2):
        state = uninterrupted[taken - 1][1] if taken else stream(prefetch).state()
        again = stream(prefetch, threads)
        again.restore(json.loads(json.dumps(state)))
        assert again.state() == state
        assert [(as_json(batch), again.state()) for batch in again] == uninterrupted[taken:]


def test_an_iterator_that_has_run_on_goes_back(uninterrupted):
    batches = stream(2)
    for _ in range(9):
        next(batches)
    batches.restore(uninterrupted[3][1])
    assert [as_json(batch) for batch in batches] == [expected for expected, _ in uninterrupted[4:]]
    batches.close()


def test_in_a_new_process(uninterrupted, tmp_path):
    """Threads, hashes and caches of the first process are gone; bad samples are counted on."""
    taken = 7
    (tmp_path / "state.json").write_text(json.dumps(uninterrupted[taken - 1][1]))
    code = (
        "import json, sys; from tests.train.data.test_position import as_json, stream\n"
        "batches = stream(2); batches.restore(json.load(open(sys.argv[1])))\n"
        "print(json.dumps([(as_json(batch), batches.state()) for batch in batches]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "state.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rest = [(batch, state) for batch, state in json.loads(done.stdout.splitlines()[-1])]
    assert rest == uninterrupted[taken:]
    counts = [counted(state) for _, state in rest]
    assert counts[-1]["seen"] > counts[0]["seen"] > 0
    for count in counts:
        assert set(count["bad"]) <= {"empty conversation"} and sum(count["bad"].values()) <= count["seen"] / 5


def test_what_is_no_position():
    for state in {}, {"taken": 1, "source": {"parent": 3}}:
        with pytest.raises(CheckpointError, match="does not fit the data"):
            stream(1).restore(state)
