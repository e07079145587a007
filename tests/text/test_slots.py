"""Layout of prompts: placeholders become slots, rows are padded, lengths fall into few buckets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vila_jax.errors import ContextLengthError, PromptError
from vila_jax.text.slots import cache_bucket, cache_buckets, expand, pad_batch, prompt_bucket

IMAGE = 7


def test_the_drawing_in_the_docstring():
    row, source = expand([1, 22, 7, 31, 32, 7, 33], IMAGE, [np.array([0, 1]), np.array([2, 3, 4])])
    assert row.tolist() == [1, 22, 7, 7, 31, 32, 7, 7, 7, 33]
    assert source.tolist() == [-1, -1, 0, 1, -1, -1, 2, 3, 4, -1]
    batch = pad_batch([(row, source)], length=12, batch=1, pad_id=0)
    assert batch.token_ids.tolist() == [[1, 22, 7, 7, 31, 32, 7, 7, 7, 33, 0, 0]]
    assert batch.source.tolist() == [[-1, -1, 0, 1, -1, -1, 2, 3, 4, -1, -1, -1]]
    assert batch.lengths.tolist() == [10]


def naive(token_ids, slots):
    """The same, one token after the other."""
    row, source, waiting = [], [], list(slots)
    for token in token_ids:
        values = waiting.pop(0).tolist() if token == IMAGE else [-1]
        row += [token] * len(values)
        source += values
    return row, source


@given(st.lists(st.integers(0, 9), max_size=12), st.data())
def test_any_prompt(token_ids, data):
    count = token_ids.count(IMAGE)
    sizes = data.draw(st.lists(st.integers(0, 4), min_size=count, max_size=count))
    slots = [np.array(data.draw(st.lists(st.integers(0, 99), min_size=n, max_size=n)), np.int32) for n in sizes]
    row, source = expand(token_ids, IMAGE, slots)
    assert (row.tolist(), source.tolist()) == naive(token_ids, slots)
    assert row.dtype == source.dtype == np.int32
    assert len(row) == len(token_ids) - count + sum(sizes)


@pytest.mark.parametrize(("token_ids", "images"), [([1, 2], 1), ([7], 0), ([7, 7], 1), ([7], 3)])
def test_images_and_placeholders_differ(token_ids, images):
    found = token_ids.count(IMAGE)
    with pytest.raises(PromptError, match=rf"{found} image placeholders, but {images} images.*one <image> per image"):
        expand(token_ids, IMAGE, [np.arange(2)] * images)


def test_rows_of_unequal_length_and_filler_rows():
    rows = [expand([1, 2, 3], IMAGE, []), expand([1, 7], IMAGE, [np.array([5, 6, 9])])]
    batch = pad_batch(rows, length=5, batch=4, pad_id=3)
    assert batch.token_ids.tolist() == [[1, 2, 3, 3, 3], [1, 7, 7, 7, 3], [3] * 5, [3] * 5]
    assert batch.source.tolist() == [[-1] * 5, [-1, 5, 6, 9, -1], [-1] * 5, [-1] * 5]
    assert batch.lengths.tolist() == [3, 4, 1, 1]


def test_rows_that_do_not_fit():
    rows = [expand([1, 2, 3], IMAGE, [])] * 2
    with pytest.raises(ContextLengthError, match="3 positions does not fit a row of 2"):
        pad_batch(rows, length=2, batch=2, pad_id=0)
    with pytest.raises(PromptError, match="2 prompts do not fit a batch of 1"):
        pad_batch(rows, length=3, batch=1, pad_id=0)


def test_prompt_buckets():
    assert [prompt_bucket(n, 4096) for n in (0, 1, 32, 33, 588, 1024, 1025, 2049)] == [
        *(32, 32, 32, 64, 608, 1024, 1088, 2176)
    ]
    assert prompt_bucket(40, 50) == 50 and prompt_bucket(50, 50) == 50


@given(st.integers(1, 40_000), st.data())
def test_a_prompt_is_padded_little(maximum, data):
    n = data.draw(st.integers(0, maximum))
    size = prompt_bucket(n, maximum)
    assert n <= size <= maximum and size <= max(n + 31, n * 17 / 16 + 1, 32)
    assert size % 32 == 0 or size == maximum
    assert prompt_bucket(size, maximum) == size


def test_cache_buckets():
    assert cache_buckets(2000) == (64, 128, 192, 256, 320, 448, 576, 768, 960, 1216, 1536, 1920, 2000)
    assert cache_buckets(50) == (50,) and cache_buckets(64) == (64,) and cache_buckets(65) == (64, 65)


@given(st.integers(1, 40_000), st.data())
def test_any_length_falls_into_the_smallest_cache(maximum, data):
    n = data.draw(st.integers(0, maximum))
    size = cache_bucket(n, maximum)
    sizes = cache_buckets(maximum)
    assert n <= size <= maximum and not any(n <= other < size for other in sizes)
    assert size <= max(64, n + 64, 1.25 * n + 64)
    assert list(sizes) == sorted(set(sizes)) and all(other % 64 == 0 for other in sizes[:-1])


def test_a_text_that_is_too_long():
    with pytest.raises(ContextLengthError, match="has 513 tokens, and at most 512 fit"):
        cache_bucket(513, 512)
    with pytest.raises(ContextLengthError, match="has 513 tokens, and at most 512 fit"):
        prompt_bucket(513, 512)
