"""A checkpoint that is being written: in a folder beside its place, which it takes when it is complete.

    .NAME.partial     what is written, with a manifest of the files that are finished and of what they are made from
    .NAME.replaced    the older checkpoint, while NAME changes hands
    .NAME.lock        held by whoever writes; the system lets go of it when a process dies

Whoever writes the same again goes on after the finished files; whoever writes something else starts over. An older
checkpoint gives way in two renames: NAME to `.NAME.replaced`, `.NAME.partial` to NAME. Whoever is ended on the way
leaves one of these states, and `recover` knows each by what is there:

    NAME                  .NAME.replaced
    is not there          is there          between the renames: the older checkpoint gets its name back
    holds a manifest      may be there      after them: the older one and the manifest were still to be removed
    holds no manifest     is there          not our doing: both stay as they are, and it is an error

An object store has neither locks nor renames of folders: there all this is only tidy, not safe.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import uuid
from collections.abc import Callable, Iterator

from etils import epath

from vila_jax.errors import CheckpointError

_MANIFEST = ".manifest"
_ELSEWHERE = "Choose a folder where you may write."
_GO_ON = "Make room or choose another folder; the same command goes on after the files that are finished."
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


def check_target(folder: epath.PathLike, *, overwrite: bool) -> None:
    """Mends what an ended run has left, then refuses a place that is taken, unless by a checkpoint to be replaced.

    Raises:
      CheckpointError: it is taken, or is being written by another process.
    """
    target = _resolved(folder)
    if target.parent.is_dir():
        with _explained(target, _ELSEWHERE), _locked(target):
            recover(target)
            _refuse_taken(target, overwrite)


def recover(target: epath.Path) -> None:
    """Brings a replacement that was ended on the way to its end, or back to its beginning; see above.

    Raises:
      CheckpointError: somebody else has put another folder there between the renames.
    """
    replaced = _beside(target, "replaced")
    if replaced.exists() and not target.exists():
        replaced.rename(target)
    elif replaced.exists() and not (target / _MANIFEST).exists():
        raise CheckpointError(
            f"an interrupted run has set the older checkpoint aside as {replaced.name}, and this is not what it wrote",
            where=str(target),
            fix=f"Keep one of them: remove {replaced}, or move it back here.",
        )
    replaced.rmtree(missing_ok=True)
    if (target / _MANIFEST).exists():
        (target / _MANIFEST).unlink()


class Staging:
    """The folder beside `target`; a context that holds the lock.

    Attributes:
      target: the place to be taken.
      folder: where to write.
      reused: files of an earlier attempt that were found finished.
    """

    def __init__(self, target: epath.PathLike, identity: str | None, *, overwrite: bool = False):
        """Nothing is touched before the context is entered.

        Args:
          target: the place to be taken.
          identity: a digest of everything that the files are made from; None for what is only in memory, of which
            nothing is kept should it fail.
          overwrite: whether a checkpoint may be there already.
        """
        self.target = _resolved(target)
        self.folder = _beside(self.target, "partial")
        self.reused: list[str] = []
        self._keep, self._identity = identity is not None, identity or uuid.uuid4().hex
        self._overwrite = overwrite
        self._finished: dict[str, int] = {}
        self._held = contextlib.ExitStack()

    def __enter__(self) -> "Staging":
        """Takes the lock, mends what an ended run has left, and opens the folder.

        Raises:
          CheckpointError: the place is taken, or is being written by another process, or cannot be written.
        """
        with _explained(self.target, _ELSEWHERE), contextlib.ExitStack() as stack:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(self.target))
            recover(self.target)
            _refuse_taken(self.target, self._overwrite)
            found = self._read_manifest()
            if found is None:
                self.folder.rmtree(missing_ok=True)
                self.folder.mkdir()
                self._write_manifest()
            self._finished = found or {}
            self._held = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Lets go of the lock; after a failure the older checkpoint has its name again."""
        with self._held:
            if kind is not None:
                recover(self.target)
                if not self._keep:
                    self.folder.rmtree(missing_ok=True)

    def write(self, name: str, write: Callable[[epath.Path], None]) -> bool:
        """Has a file written, unless it is finished already; it has its name only when it is.

        Args:
          name: of the file, relative to the folder.
          write: writes it to the path that it is given.

        Returns:
          Whether it was written now.

        Raises:
          CheckpointError: the disk is full, or the like.
        """
        path = self.folder / name
        if path.exists() and path.stat().length == self._finished.get(name):
            self.reused.append(name)
            return False
        unfinished = path.parent / f"{path.name}.unfinished"
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write(unfinished)
            unfinished.replace(path)
            self._finished[name] = path.stat().length
            self._write_manifest()
        return True

    def take_place(self) -> None:
        """Ends the work: what is not of it goes, and the folder gets its name.

        Raises:
          CheckpointError: somebody else has taken the place meanwhile.
        """
        known = {*self._finished, _MANIFEST}
        with _explained(self.target):
            for path in _files(self.folder):
                if path.relative_to(self.folder).as_posix() not in known:
                    path.unlink()
            _refuse_taken(self.target, self._overwrite)
            if _is_empty(self.target):
                self.target.rmdir()
            if self.target.exists():
                self.target.rename(_beside(self.target, "replaced"))
            self.folder.rename(self.target)
            recover(self.target)

    def _read_manifest(self) -> dict[str, int] | None:
        """Finished files and their sizes; None if there are none of use."""
        try:
            manifest = json.loads((self.folder / _MANIFEST).read_text())
            return dict(manifest["finished"]) if manifest["identity"] == self._identity else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _write_manifest(self) -> None:
        unfinished = self.folder / f"{_MANIFEST}.unfinished"
        unfinished.write_text(json.dumps({"identity": self._identity, "finished": self._finished}))
        unfinished.replace(self.folder / _MANIFEST)


def _resolved(folder: epath.PathLike) -> epath.Path:
    """The folder itself, by whatever name or link it is given, so that everybody finds the same lock beside it."""
    path = epath.Path(folder)
    return path if "://" in str(path) else epath.Path(pathlib.Path(path).resolve())


def _beside(target: epath.Path, kind: str) -> epath.Path:
    return target.parent / f".{target.name}.{kind}"


def _refuse_taken(target: epath.Path, overwrite: bool) -> None:
    if not target.exists() or _is_empty(target):
        return
    other = "Choose another folder"
    if not (target / "config.json").exists():
        what = "this exists already, and is not a checkpoint" if target.is_dir() else "this is a file"
        raise CheckpointError(what, where=str(target), fix=f"{other}.")
    if not overwrite:
        fix = f"{other}, or replace it: `--force`, from Python `overwrite=True`."
        raise CheckpointError("there is a checkpoint already", where=str(target), fix=fix)


def _is_empty(folder: epath.Path) -> bool:
    return folder.is_dir() and next(iter(folder.iterdir()), None) is None


@contextlib.contextmanager
def _locked(target: epath.Path) -> Iterator[None]:
    """Holds the lock of a target. The file goes with it, so one that vanishes while it is opened is opened again."""
    if "://" in str(target):
        yield
        return
    path = os.fspath(_beside(target, "lock"))
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor, target)
            if _is_at(path, descriptor):
                break
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    try:
        yield
    finally:
        try:
            os.unlink(path)  # before the lock is gone: afterwards the file may be another's
        finally:
            os.close(descriptor)


def _is_at(path: str, descriptor: int) -> bool:
    """Whether the opened file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _lock(descriptor: int, target: epath.Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fix = "Wait until it is finished, or choose another folder."
        raise CheckpointError("another process is writing this checkpoint", where=str(target), fix=fix) from None
    except OSError as error:  # some network file systems know no locks, and files are written there all the same
        if error.errno not in _NO_LOCKS:
            raise


@contextlib.contextmanager
def _explained(path: epath.Path, fix: str = _GO_ON) -> Iterator[None]:
    """Says of an error of the operating system which file it concerns."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot be written ({error})", where=str(path), fix=fix) from error


def _files(folder: epath.Path) -> list[epath.Path]:
    inside = list(folder.iterdir())
    return [file for path in inside for file in (_files(path) if path.is_dir() else [path])]
