"""Weights that stay in the pages of their file: the same numbers, no copy, and errors in place of signals."""

import mmap
import platform
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from etils import epath
from flax import nnx

from tests.hf.models import build, save
from vila_jax.errors import CheckpointError
from vila_jax.hf import pages
from vila_jax.hf.checkpoint import open_checkpoint
from vila_jax.hf.convert import convert
from vila_jax.hf.load import load_state, plan_weights
from vila_jax.hf.out_tensor import OutTensor, write_file
from vila_jax.hf.pages import ALIGNMENT, Pages
from vila_jax.hf.safetensors import open_shard
from vila_jax.nn.params import dotted

_TELLS = sys.platform == "linux" and tuple(map(int, platform.release().split(".")[:2])) >= (5, 14)
pytestmark = pytest.mark.skipif(not _TELLS, reason="this kernel does not say whether pages can be read")

RNG = np.random.default_rng(0)
TENSORS = {
    "odd": RNG.normal(size=(3, 5)).astype(np.float32),
    "matrix": RNG.normal(size=(96, 32)).astype(np.float32),
    "half": RNG.normal(size=(64, 7)).astype(np.float16),
    "brain": RNG.normal(size=(32, 33)).astype(ml_dtypes.bfloat16),
    "odd brain": RNG.normal(size=(7,)).astype(ml_dtypes.bfloat16),
    "another odd": RNG.normal(size=(11,)).astype(np.float32),
    "empty": np.zeros((0, 4), np.float32),
    "scalar": np.array(3.5, np.float32),
}
WHOLE = [name for name, tensor in TENSORS.items() if tensor.nbytes and tensor.nbytes % ALIGNMENT == 0]


@pytest.fixture
def path(tmp_path) -> epath.Path:
    path = epath.Path(tmp_path) / "x.safetensors"
    write_file(path, [OutTensor.of_array(name, tensor) for name, tensor in TENSORS.items()], lambda tensor: None)
    return path


def test_what_is_written_can_be_used_where_it_lies(path):
    shard = open_shard(path)
    assert len(WHOLE) == 3
    for name in WHOLE:
        tensor, found = TENSORS[name], shard.in_place(name, TENSORS[name].dtype)
        np.testing.assert_array_equal(found, tensor)
        assert found.dtype == tensor.dtype and not found.flags.writeable and not found.flags.owndata
        on_device = jax.device_put(found, jax.devices("cpu")[0])
        assert on_device.unsafe_buffer_pointer() == found.ctypes.data


def test_what_is_written_is_aligned_to_its_dtype(path):
    shard = open_shard(path)
    for name, tensor in TENSORS.items():
        assert shard.tensors[name].start % (ALIGNMENT if name in WHOLE else tensor.itemsize) == 0
        np.testing.assert_array_equal(shard.read(name), tensor)


def test_what_cannot_be_used_where_it_lies(path, tmp_path):
    shard = open_shard(path)
    assert shard.in_place("matrix", np.float16) is None
    assert shard.in_place("empty", np.float32) is None
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    shifted = (length + 8).to_bytes(8, "little") + raw[8 : 8 + length] + b" " * 8 + raw[8 + length :]
    (tmp_path / "shifted.safetensors").write_bytes(shifted)
    moved = open_shard(epath.Path(tmp_path) / "shifted.safetensors")
    assert moved.in_place("matrix", np.float32) is None
    np.testing.assert_array_equal(moved.read("matrix"), TENSORS["matrix"])


def test_storage_elsewhere_is_read():
    assert Pages.of(epath.Path("gs://bucket/x.safetensors")) is None
    assert Pages.of(epath.Path("nowhere/x.safetensors")) is None


def test_a_file_that_has_shrunk_is_an_error_not_a_signal(path, monkeypatch):
    monkeypatch.setattr(pages, "_PIECE", mmap.PAGESIZE)
    name = max(WHOLE, key=lambda name: open_shard(path).tensors[name].start)
    info, dtype = open_shard(path).tensors[name], TENSORS[name].dtype
    assert info.stop > 2 * mmap.PAGESIZE
    shard, mapped = open_shard(path), Pages.of(path)  # one before it is mapped, one after
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be read from byte"):
        shard.in_place(name, dtype)
    with pytest.raises(CheckpointError, match="cannot be read from byte"):
        mapped.read(info.start, info.stop)


def test_a_file_that_is_replaced_is_still_the_old_one(path):
    found = open_shard(path).in_place("matrix", np.float32)
    other = path.with_name("other")
    other.write_bytes(b"x" * path.stat().length)
    other.replace(path)
    np.testing.assert_array_equal(found, TENSORS["matrix"])


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A checkpoint as this package writes it, of sizes that are multiples of the alignment, and by chance not."""
    folder = tmp_path_factory.mktemp("converted")
    save(build(next_=True), folder / "source")
    convert(open_checkpoint(folder / "source"), folder / "target", to="hf")
    return folder / "target"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_of_the_files_dtype_is_not_copied(converted, dtype):
    plan, shared = plan_weights(open_checkpoint(converted), dtype=jnp.dtype(dtype), mmap=True), 0
    state = plan.read()
    for path, leaf in nnx.to_flat_state(state):
        source, array = plan.targets[dotted(path)].source, leaf.get_value()
        found = source.in_place(dtype)
        shared += found is not None and array.unsafe_buffer_pointer() == found.ctypes.data
        np.testing.assert_array_equal(np.asarray(array), source.read(dtype=jnp.dtype(dtype)))
    whole = sum(leaf.nbytes % ALIGNMENT == 0 for leaf in jax.tree.leaves(state))
    assert (5 < whole <= shared) if dtype == "float32" else (shared == 0)  # some begin there by chance


def test_training_leaves_the_file_alone(converted):
    """Donated weights are the optimizer's to overwrite, in memory of its own."""
    before = {file: file.read_bytes() for file in converted.glob("*.safetensors")}
    _, state = load_state(open_checkpoint(converted), dtype=np.float32, mmap=True)
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    stepped = jax.block_until_ready(step(state))
    _, again = load_state(open_checkpoint(converted), dtype=np.float32)
    jax.tree.map(np.testing.assert_array_equal, stepped, jax.tree.map(lambda x: x + 1, again))
    assert before == {file: file.read_bytes() for file in converted.glob("*.safetensors")}
