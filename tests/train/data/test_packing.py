"""Packed rows hold the same samples as the reference's packing, and nothing of one reaches another."""

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.labels import IGNORED
from train.data.packing import Laid, RowShape, pack

TILE = (3, 2, 2)
V = 3  # visual tokens of a tile


def sample(length, tiles=0, number=1):
    """`number` tells the sample's tokens and tiles from others; its visual tokens come after the first token."""
    ids = number * 1000 + np.arange(length, dtype=np.int32)
    source = np.full(length, -1, np.int32)
    source[1 : 1 + tiles * V] = np.arange(tiles * V)
    labels = np.where(source >= 0, IGNORED, ids).astype(np.int32)
    pixels = number + np.arange(tiles, dtype=np.float32)[:, None, None, None] / 100 + np.zeros(TILE, np.float32)
    return Laid(ids, labels, source, pixels)


def packed(samples, shape):
    source = grain.MapDataset.source([s.features() for s in samples]).to_iter_dataset()
    return list(pack(source, shape, V))


def unpacked(rows):
    """The samples of packed rows, by their first token: ids, targets, and the numbers of the tiles they point to."""
    found = {}
    for row in rows:
        for segment in range(1, row["segments"].max() + 1):
            own = row["segments"] == segment
            ids = row["token_ids"][own]
            if not ids[0]:
                continue  # padding
            assert row["positions"][own].tolist() == list(range(own.sum()))
            pointed = row["source"][own]
            tiles = row["pixels"][pointed[pointed >= 0] // V, 0, 0, 0]
            found[int(ids[0])] = ids.tolist(), row["targets"][own].tolist(), tiles.tolist(), pointed[pointed >= 0] % V
    return found


def check(samples, rows):
    found = unpacked(rows)
    assert len(found) == len(samples)
    for number, one in enumerate(samples, start=1):
        ids, targets, tiles, inside = found[number * 1000]
        assert ids == one.token_ids.tolist() and targets == [*one.labels[1:].tolist(), IGNORED]
        expected = one.pixels[one.source[one.source >= 0] // V, 0, 0, 0]
        np.testing.assert_allclose(tiles, expected)
        np.testing.assert_array_equal(inside, one.source[one.source >= 0] % V)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 8)), min_size=1, max_size=12), st.integers(1, 4))
def test_every_sample_is_there_once_and_whole(sizes, bins):
    samples = [sample(1 + tiles * V + text, tiles, i) for i, (tiles, text) in enumerate(sizes, start=1)]
    rows = packed(samples, RowShape(tokens=24, tiles=3, bins=bins))
    assert all(row["token_ids"].shape == (24,) and row["pixels"].shape == (3, *TILE) for row in rows)
    check(samples, rows)
    used = np.sum([row["used"] for row in rows], axis=0)
    assert used.tolist() == [sum(len(s.token_ids) for s in samples), sum(len(s.pixels) for s in samples)]


def test_padding_is_a_segment_of_its_own_and_is_not_learned():
    [row] = packed([sample(4, number=1), sample(3, number=2)], RowShape(tokens=9, tiles=1, bins=1))
    assert row["segments"].tolist() == [1, 1, 1, 1, 2, 2, 2, 3, 3]
    assert row["positions"].tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 0]
    assert row["targets"].tolist() == [1001, 1002, 1003, IGNORED, 2001, 2002, IGNORED, IGNORED, IGNORED]
    [row] = packed([sample(9)], RowShape(tokens=9, tiles=1, bins=1))
    assert set(row["segments"].tolist()) == {1}


def test_same_samples_as_the_reference(golden):
    """The reference puts the samples of a batch behind one another in one row, and asks for no token across a seam."""
    with np.load(golden / "vila" / "modules" / "packing.npz") as arrays:
        mask, labels = arrays["attention_mask"].astype(bool), arrays["labels"]
        reference = arrays["packed_labels"][0], arrays["packed_position_ids"][0]
    samples = [
        Laid(
            np.flatnonzero(own).astype(np.int32) + 1000 * (i + 1),
            labels[i][own].astype(np.int32),
            np.full(own.sum(), -1, np.int32),
            np.zeros((0, *TILE), np.float32),
        )
        for i, own in enumerate(mask)
    ]
    [row] = packed(samples, RowShape(tokens=int(mask.sum()) + 1, tiles=1, bins=1))
    starts = np.flatnonzero(reference[1] == 0)[:-1]  # the last is the reference's dummy token
    ends = [*starts[1:], int(mask.sum())]
    theirs = sorted(reference[0][a + 1 : b].tolist() for a, b in zip(starts, ends, strict=True))
    ours = sorted(row["targets"][row["segments"] == s][:-1].tolist() for s in range(1, len(samples) + 1))
    assert ours == theirs


def test_a_sample_that_fits_no_row():
    shape = RowShape(tokens=8, tiles=1)
    assert sample(8, 1).fits(shape) and not sample(9).fits(shape) and not sample(8, 2).fits(shape)
    with pytest.raises(ValueError, match="max length"):
        packed([sample(9)], shape)


def test_it_goes_on_where_it_was_saved():
    samples = [sample(3 + i % 4, i % 2, i) for i in range(1, 40)]
    source = grain.MapDataset.source([s.features() for s in samples]).to_iter_dataset()
    dataset = pack(source, RowShape(tokens=10, tiles=2, bins=3), V, seed=1)
    iterator = iter(dataset)
    for _ in range(5):
        next(iterator)
    state, rest = iterator.get_state(), [row["token_ids"].tolist() for row in iterator]
    again = iter(dataset)
    again.set_state(state)
    assert [row["token_ids"].tolist() for row in again] == rest and len(rest) > 3
