"""One writer at a time, and a replacement that is ended on its way loses nothing and is mended by the next run."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from vila_jax.errors import CheckpointError
from vila_jax.hf import staging as staging_module
from vila_jax.hf.staging import Staging, check_target

OLD, NEW = {"config.json": b"old", "weights": b"old"}, {"config.json": b"new", "llm/weights": b"new"}
ROOT = pathlib.Path(staging_module.__file__).parents[2]
CHANGES = ("rename", "replace", "unlink", "remove", "rmdir", "mkdir")


class Killed(SystemExit):
    """What a killed process does not catch; here it unwinds the stack, in which nothing can be changed any more."""


@pytest.fixture
def target(tmp_path):
    return tmp_path / "ours"


def _put(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def _write(target, files=NEW, identity="new", overwrite=True):
    with Staging(target, identity, overwrite=overwrite) as staging:
        for name, data in files.items():
            staging.write(name, lambda path, data=data: path.write_bytes(data))
        staging.take_place()
    return staging


def _contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


@contextlib.contextmanager
def _killed_at(change):
    """Ends the process at the change of this number: it is not made, and none after it is."""
    made = []

    def dies(real):
        def call(*arguments, **options):
            made.append(real.__name__)
            if len(made) > change:
                raise Killed
            return real(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGES:
            patch.setattr(os, name, dies(getattr(os, name)))
        patch.setattr(shutil, "rmtree", dies(shutil.rmtree))
        try:
            yield made
        except Killed:
            pass
        else:
            assert len(made) <= change, "nothing was killed"


def _number_of_changes(folder, replaces):
    if replaces:
        _put(folder, OLD)
    with _killed_at(1000) as made:
        _write(folder)
    return made


@pytest.mark.parametrize("replaces", [True, False])
def test_killed_at_every_change(replaces, tmp_path):
    """There is always a whole checkpoint, the older or the new; the next run leaves the new one and no debris."""
    changes = _number_of_changes(tmp_path / "trial" / "ours", replaces)
    assert changes.count("rename") == 1 + replaces
    seen = set()
    for number in range(len(changes)):
        folder = tmp_path / str(number)
        folder.mkdir()
        target = folder / "ours"
        if replaces:
            _put(target, OLD)
        with _killed_at(number):
            _write(target)
        left = {name: _contents(folder / name) for name in _names(folder) if (folder / name).is_dir()}
        whole = [files for files in left.values() if OLD.items() <= files.items() or NEW.items() <= files.items()]
        seen.add(tuple(left))
        assert whole or not replaces
        if "ours" in left:
            assert left["ours"] == OLD or NEW.items() <= left["ours"].items()
        _write(target)
        assert _contents(target) == NEW
        assert _names(folder) == ["ours"]
    if replaces:
        assert {(".ours.partial", ".ours.replaced"), (".ours.replaced", "ours"), ("ours",)} <= seen


@pytest.mark.parametrize("point", ["between", "after"])
def test_killed_between_the_renames(point, target):
    """Without leave to replace, the next run mends just the same, and then refuses."""
    _put(target, OLD)
    _put(target.parent / ".ours.partial", {**NEW, ".manifest": b"{}"})
    target.rename(target.parent / ".ours.replaced")
    if point == "after":
        (target.parent / ".ours.partial").rename(target)
    with pytest.raises(CheckpointError, match="there is a checkpoint already"):
        check_target(target, overwrite=False)
    assert _contents(target) == (OLD if point == "between" else NEW)
    assert not (target.parent / ".ours.replaced").exists()


DIE = """
import os, signal, sys
from vila_jax.hf.staging import Staging
real = os.rename

def rename(source, target):
    if str(source).endswith(".partial"):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(source, target)

os.rename = rename
with Staging(sys.argv[1], "new", overwrite=True) as staging:
    for name in ("config.json", "llm/weights"):
        staging.write(name, lambda path: path.write_bytes(b"new"))
    staging.take_place()
"""


def test_kill_9_between_the_renames(target):
    """The finished files are used again."""
    _put(target, OLD)
    process = subprocess.run([sys.executable, "-c", DIE, str(target)], cwd=ROOT, check=False)
    assert process.returncode == -signal.SIGKILL
    assert _names(target.parent) == [".ours.lock", ".ours.partial", ".ours.replaced"]
    assert sorted(_write(target).reused) == sorted(NEW)
    assert _contents(target) == NEW and _names(target.parent) == ["ours"]


def test_an_error_between_the_renames_puts_the_older_one_back(monkeypatch, target):
    _put(target, OLD)
    real = os.rename

    def rename(source, place):
        if str(source).endswith(".partial"):
            raise OSError("no space left on device")
        return real(source, place)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(CheckpointError, match="cannot be written"):
        _write(target)
    assert _contents(target) == OLD
    assert _names(target.parent) == [".ours.partial", "ours"]
    with pytest.raises(CheckpointError, match="cannot be written"):
        _write(target, identity=None)
    assert _contents(target) == OLD
    assert _names(target.parent) == ["ours"]


def test_a_folder_that_somebody_else_put_there_stays(target):
    _put(target.parent / ".ours.replaced", OLD)
    _put(target, {"config.json": b"somebody's"})
    with pytest.raises(CheckpointError, match=r"set the older checkpoint aside as \.ours\.replaced"):
        _write(target)
    assert _contents(target) == {"config.json": b"somebody's"}
    assert _contents(target.parent / ".ours.replaced") == OLD


def test_a_second_writer_is_refused(target):
    with Staging(target, "first") as first:
        first.write("config.json", lambda path: path.write_bytes(b"first"))
        for identity in ("first", "second", None):
            with pytest.raises(CheckpointError, match=r"ours: another process is writing this checkpoint\. Wait"):
                _write(target, identity=identity)
        with pytest.raises(CheckpointError, match="another process"):
            check_target(target, overwrite=True)
        link = target.parent / "link"
        link.symlink_to(target)
        with pytest.raises(CheckpointError, match="another process"):
            _write(link)
        link.unlink()
        _write(target.parent / "theirs")
        first.take_place()
    assert _contents(target) == {"config.json": b"first"}
    assert _names(target.parent) == ["ours", "theirs"]


HOLD = """
import sys
from vila_jax.hf.staging import Staging
with Staging(sys.argv[1], "theirs"):
    print("holds it", flush=True)
    sys.stdin.read()
"""


def test_a_dead_writer_holds_nothing(target):
    """The lock of another process, which is then killed."""
    command = [sys.executable, "-c", HOLD, str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True) as process:
        try:
            assert process.stdout.readline() == "holds it\n"
            with pytest.raises(CheckpointError, match="another process"):
                _write(target)
        finally:
            os.kill(process.pid, signal.SIGKILL)
    assert (target.parent / ".ours.lock").exists()
    _write(target)
    assert _contents(target) == NEW and _names(target.parent) == ["ours"]


def test_a_lock_that_vanishes_while_it_is_opened_is_opened_again(monkeypatch, target):
    """Another writer ends between the opening of its file and the locking of it."""
    real, opened = staging_module._lock, []

    def lock(descriptor, place):
        opened.append(descriptor)
        if len(opened) == 1:
            os.unlink(target.parent / ".ours.lock")
        real(descriptor, place)

    monkeypatch.setattr(staging_module, "_lock", lock)
    with Staging(target, "new"):
        assert len(opened) == 2
        monkeypatch.setattr(staging_module, "_lock", real)
        with pytest.raises(CheckpointError, match="another process"):
            _write(target)


def test_file_systems_without_locks_are_written_all_the_same(monkeypatch, target):
    def flock(*_):
        raise OSError(staging_module.errno.ENOLCK, "no locks available")

    monkeypatch.setattr(staging_module.fcntl, "flock", flock)
    _write(target)
    assert _contents(target) == NEW and _names(target.parent) == ["ours"]


def test_an_empty_folder_is_taken(target):
    target.mkdir()
    _write(target, overwrite=False)
    assert _contents(target) == NEW


def test_a_link_to_a_checkpoint_keeps_leading_to_it(target):
    _put(target, OLD)
    link = target.parent / "link"
    link.symlink_to(target)
    _write(link)
    assert link.is_symlink()
    assert _contents(target) == NEW and _names(target.parent) == ["link", "ours"]


def test_what_is_no_checkpoint_stays(target):
    target.write_bytes(b"x")
    with pytest.raises(CheckpointError, match="this is a file"):
        _write(target)
    target.unlink()
    _put(target, {"diary.txt": b"x"})
    with pytest.raises(CheckpointError, match="exists already, and is not a checkpoint"):
        _write(target)
    assert _contents(target) == {"diary.txt": b"x"}


def test_somebody_who_takes_the_place_meanwhile_keeps_it(target):
    with pytest.raises(CheckpointError, match="there is a checkpoint already"), Staging(target, "new") as staging:
        staging.write("config.json", lambda path: path.write_bytes(b"new"))
        _put(target, OLD)
        staging.take_place()
    assert _contents(target) == OLD
