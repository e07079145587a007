"""A conversion that is ended leaves nothing that looks complete, and the next one goes on."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.hf.vila import CHECKPOINTS, all_tensors, copy, edit_tensors
from vila_jax.errors import CheckpointError
from vila_jax.hf import writing
from vila_jax.hf.checkpoint import open_checkpoint
from vila_jax.hf.convert import convert
from vila_jax.hf.export import export
from vila_jax.hf.load import abstract_model

NAME = "v1_single_folder"
SMALL = {"to": "vila", "max_shard_bytes": 20_000}


class Killed(BaseException):
    """What no code catches by chance."""


def _contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def whole(tmp_path):
    """The contents of a conversion that nothing disturbed."""
    convert(open_checkpoint(CHECKPOINTS / NAME), tmp_path / "whole", **SMALL)
    return _contents(tmp_path / "whole")


def _end_after(tensors, source, target, **options):
    """Ends a conversion as a signal would, after this number of tensors."""
    seen = []

    def on_tensor(name, done, total):
        seen.append(name)
        if len(seen) == tensors:
            raise Killed

    with pytest.raises(Killed):
        convert(open_checkpoint(source), target, **SMALL | options, on_tensor=on_tensor)


def test_the_next_attempt_goes_on(whole, tmp_path):
    target, partial = tmp_path / "ours", tmp_path / ".ours.partial"
    _end_after(60, CHECKPOINTS / NAME, target)
    assert not target.exists()
    finished = {path: path.stat().st_mtime_ns for path in partial.rglob("*.safetensors")}
    assert len(finished) > 2
    assert not list(partial.rglob("config.json"))
    seen = []
    checkpoint = open_checkpoint(CHECKPOINTS / NAME)
    written = convert(checkpoint, target, **SMALL, on_tensor=lambda _, done, total: seen.append((done, total)))
    assert {partial / name for name in written.reused} == set(finished)
    assert {target / name: (target / name).stat().st_mtime_ns for name in written.reused} == {
        target / path.relative_to(partial): stamp for path, stamp in finished.items()
    }
    assert len(seen) < written.tensors
    assert seen[-1] == (written.nbytes, written.nbytes)
    assert _contents(target) == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "whole"]


@pytest.mark.parametrize("other", [{"dtype": "float32"}, {"max_shard_bytes": 30_000}, {"to": "hf"}])
def test_other_options_start_over(whole, other, tmp_path):
    _end_after(60, CHECKPOINTS / NAME, tmp_path / "ours", **other)
    written = convert(open_checkpoint(CHECKPOINTS / NAME), tmp_path / "ours", **SMALL)
    assert not written.reused
    assert _contents(tmp_path / "ours") == whole


def test_another_source_starts_over(whole, tmp_path):
    source = copy(NAME, tmp_path)
    _end_after(60, source, tmp_path / "ours")
    shard = source / "model-00001-of-00003.safetensors"
    edit_tensors(shard, lambda tensors: {name: tensor * 2 for name, tensor in tensors.items()})
    assert not convert(open_checkpoint(source), tmp_path / "ours", **SMALL).reused
    doubled, plain = (all_tensors(tmp_path / name) for name in ("ours", "whole"))
    assert any(torch.equal(doubled[name], plain[name] * 2) for name in plain)


def test_a_damaged_file_of_an_earlier_attempt_is_written_again(whole, tmp_path):
    _end_after(60, CHECKPOINTS / NAME, tmp_path / "ours")
    first = min((tmp_path / ".ours.partial").rglob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-1])
    convert(open_checkpoint(CHECKPOINTS / NAME), tmp_path / "ours", **SMALL)
    assert _contents(tmp_path / "ours") == whole


def test_an_existing_folder_is_replaced_only_on_demand(whole, tmp_path):
    source = open_checkpoint(CHECKPOINTS / NAME)
    with pytest.raises(CheckpointError, match="a checkpoint already"):
        convert(source, tmp_path / "whole", **SMALL)
    convert(source, tmp_path / "whole", to="llava", overwrite=True)
    assert not (tmp_path / "whole" / "llm").exists()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "diary.txt").write_text("x")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        convert(source, tmp_path / "precious", **SMALL, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious", "whole"]


def test_one_tensor_at_a_time(monkeypatch, tmp_path):
    """No tensor is read whole where its bytes are copied, and none twice where they are changed."""
    read = []
    shard = type(next(iter(open_checkpoint(CHECKPOINTS / NAME).shards.values())))
    plain = shard.read
    monkeypatch.setattr(shard, "read", lambda self, name, *rest: read.append(name) or plain(self, name, *rest))
    convert(open_checkpoint(CHECKPOINTS / NAME), tmp_path / "copied", to="vila")
    assert not read
    written = convert(open_checkpoint(CHECKPOINTS / NAME), tmp_path / "changed", to="vila", dtype="float32")
    assert len(read) == len(set(read)) == written.tensors


def test_killed_by_the_system(whole, tmp_path):
    """`kill -9` after the first files, as the kernel does when memory is short."""
    target, partial = tmp_path / "ours", tmp_path / ".ours.partial"
    source = CHECKPOINTS / NAME
    options = ["--to", "vila", "--max-shard-size", "20000"]
    slow = (  # waits after every tensor, so that there is a middle
        "import sys, time; from vila_jax.cli import progress; from vila_jax.cli.main import main; "
        "progress.Progress.on_tensor = lambda *_, **__: time.sleep(0.02); sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", slow, "convert", str(source), str(target), *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while process.poll() is None and not list(partial.rglob("*.safetensors")):
            time.sleep(0.005)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    assert not target.exists()
    assert not (partial / "config.json").exists()
    written = convert(open_checkpoint(source), target, **SMALL)
    assert written.reused
    assert _contents(target) == whole
    assert not partial.exists()


def test_an_export_that_fails_leaves_nothing(monkeypatch, tmp_path):
    def fail(*_, **__):
        raise OSError("no space left on device")

    checkpoint = open_checkpoint(CHECKPOINTS / NAME)
    _, state = abstract_model(checkpoint.config.vlm, "float32")
    monkeypatch.setattr(writing, "write_file", fail)
    with pytest.raises(CheckpointError, match=r"cannot be written \(no space"):
        export(checkpoint, state, tmp_path / "ours", to="vila")
    assert not list(tmp_path.iterdir())
