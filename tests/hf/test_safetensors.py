"""The reader against the safetensors library, on sound files and on damaged ones."""

import json
import random

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from etils import epath

from vila_jax.errors import CheckpointError
from vila_jax.hf import safetensors as reader
from vila_jax.hf.safetensors import open_shard

RNG = np.random.default_rng(0)
TENSORS = {
    "matrix": RNG.normal(size=(5, 7)).astype(np.float32),
    "half": RNG.normal(size=(3, 2, 4)).astype(np.float16),
    "brain": RNG.normal(size=(6, 3)).astype(ml_dtypes.bfloat16),
    "scalar": np.array(3.5, np.float32),
    "empty": np.zeros((0, 4), np.float32),
    "vector": RNG.normal(size=(9,)).astype(np.float32),
}


@pytest.fixture
def path(tmp_path) -> epath.Path:
    (tmp_path / "x.safetensors").write_bytes(safetensors.numpy.save(TENSORS, metadata={"format": "pt"}))
    return epath.Path(tmp_path / "x.safetensors")


def _write(path, header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def test_reads_what_the_library_wrote(path):
    shard = open_shard(path)
    assert shard.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        read = shard.read(name)
        assert read.dtype == tensor.dtype
        assert read.flags.owndata or read.base is None or read.base.flags.owndata
        np.testing.assert_array_equal(read, tensor)


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("matrix", (slice(1, 4), slice(None))),
        ("matrix", (slice(None), slice(2, 5))),
        ("matrix", (slice(4, None), slice(None, 3))),
        ("half", (slice(1, 3), slice(0, 1), slice(1, 4))),
        ("brain", (slice(2, 6), slice(None))),
        ("vector", (slice(3, 8),)),
        ("scalar", ()),
    ],
)
def test_reads_slices(path, name, index):
    part = open_shard(path).read(name, index)
    np.testing.assert_array_equal(part, TENSORS[name][index])
    assert part.flags.c_contiguous


def _entry(begin=0, end=8, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def _holding(entry, size=8, name="a"):
    """Writes a file of one tensor with this header entry, and `size` bytes of data."""
    return lambda path: _write(path, {name: entry}, b"x" * size)


DAMAGED = {
    "empty file": (lambda path: path.write_bytes(b""), "at least 8 bytes, this has 0"),
    "header longer than the file": (
        lambda path: path.write_bytes((10**6).to_bytes(8, "little") + b"{}"),
        "header claims 1000000 bytes, but the file has only 10",
    ),
    "header of 2^63 bytes": (lambda path: path.write_bytes(b"\xff" * 30), "header claims 18446744073709551615 bytes"),
    "not JSON": (lambda path: _write(path, b"{'a': 1}"), "not valid JSON"),
    "not UTF-8": (lambda path: _write(path, b'{"\xff": 1}'), "not valid JSON"),
    "too deep": (lambda path: _write(path, b'{"a":' + b"[" * 100_000), "not valid JSON"),
    "not an object": (lambda path: _write(path, [1]), "not a JSON object"),
    "name twice": (
        lambda path: _write(path, f'{{"a": {json.dumps(_entry())}, "a": {json.dumps(_entry())}}}'.encode(), b"x" * 8),
        "'a' appears twice",
    ),
    "no dtype": (_holding({"shape": [2], "data_offsets": [0, 8]}), "tensor a lacks"),
    "three offsets": (_holding(_entry() | {"data_offsets": [0, 4, 8]}), "tensor a lacks"),
    "entry is a number": (_holding(3), "tensor a lacks"),
    "negative shape": (_holding(_entry(shape=(-2,))), "impossible"),
    "float offset": (_holding(_entry(end=8.0)), "impossible"),
    "ends before it begins": (_holding(_entry(8, 0)), "impossible"),
    "shape and bytes disagree": (_holding(_entry(shape=(3,))), r"tensor a of shape \[3\] needs 12 bytes, but has 8"),
    "dtype and bytes disagree": (_holding(_entry(dtype="F16")), "needs 4 bytes, but has 8"),
    "beyond the file": (_holding(_entry(), 7), "truncated: tensor a ends at byte"),
    "overlap": (lambda path: _write(path, {"a": _entry(), "b": _entry(4, 12)}, b"x" * 12), "tensor b overlaps"),
    "gap": (lambda path: _write(path, {"a": _entry(), "b": _entry(12, 20)}, b"x" * 20), "tensor b leaves a gap"),
    "bytes left over": (_holding(_entry(), 11), "3 bytes after its last tensor"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_described(name, path):
    write, message = DAMAGED[name]
    write(path)
    with pytest.raises(CheckpointError, match=message) as error:
        open_shard(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("cut", [0, 4, 7, 8, 9, 100, -1, -40])
def test_truncation_anywhere_is_refused(path, cut):
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError):
        open_shard(path)


def test_whatever_the_library_refuses_is_refused(tmp_path):
    """1,000 files with a few bytes of their header changed; what the library accepts must read the same."""
    path = epath.Path(tmp_path / "x.safetensors")
    plain = {name: TENSORS[name] for name in ("matrix", "half", "vector")}
    sound = safetensors.numpy.save(plain)
    header = 8 + int.from_bytes(sound[:8], "little")
    draw = random.Random(0)
    refused = 0
    for _ in range(1_000):
        damaged = bytearray(sound)
        for _ in range(draw.randint(1, 3)):
            damaged[draw.randrange(header)] = draw.choice(b'0123456789{}[]":,abF \\\x00\xff')
        path.write_bytes(damaged)
        try:
            wanted = safetensors.numpy.load(bytes(damaged))
        except Exception:  # its errors are of many classes
            refused += 1
            with pytest.raises(CheckpointError):
                _read_all(path)
            continue
        found = _read_all(path)
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            np.testing.assert_array_equal(found[name], tensor)
    assert 200 < refused < 1_000


def _read_all(path):
    shard = open_shard(path)
    return {name: shard.read(name) for name in shard.tensors}


def test_what_is_read_is_taken_over_without_a_copy(path):
    """XLA's CPU backend shares memory that is aligned to 64 bytes."""
    shard = open_shard(path)
    for name in ("matrix", "half", "brain", "scalar", "vector"):
        read = shard.read(name)
        assert jax.device_put(read, jax.devices()[0]).unsafe_buffer_pointer() == read.ctypes.data


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=lambda dtype: dtype.__name__)
def test_pieces_that_are_converted_are_the_whole(path, monkeypatch, dtype):
    monkeypatch.setattr(reader, "_PIECE", 5)
    shard = open_shard(path)
    for name, tensor in TENSORS.items():
        read = shard.read(name, dtype=dtype)
        assert read.dtype == dtype
        np.testing.assert_array_equal(read, tensor.astype(dtype))
        if tensor.ndim == 2 and len(tensor):
            np.testing.assert_array_equal(shard.read(name, (slice(1, 4), slice(1, 3)), dtype), read[1:4, 1:3])


def test_every_bfloat16_is_converted_exactly():
    numbers = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    converted = np.empty(2**16, np.float32)
    reader.convert(numbers, converted)
    np.testing.assert_array_equal(converted, numbers.astype(np.float32))


@pytest.mark.parametrize("dtype", [None, np.float64])
def test_a_file_that_has_shrunk_is_refused(path, monkeypatch, dtype):
    monkeypatch.setattr(reader, "_PIECE", 2)
    shard = open_shard(path)
    last = max(shard.tensors, key=lambda name: shard.tensors[name].stop)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="middle of a tensor"):
        shard.read(last, dtype=dtype)
