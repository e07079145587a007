"""A checkpoint that is being written: in a folder beside its place, which it takes when it is complete.

The folder `.NAME.partial` holds a manifest of the files that are finished, and of what they are made from. Whoever
writes the same again goes on after them; whoever writes something else starts over.
"""

import contextlib
import json
from collections.abc import Callable, Iterator

from etils import epath

from vila_jax.errors import CheckpointError

_MANIFEST = "partial.json"


def check_target(folder: epath.Path, *, overwrite: bool) -> None:
    """Refuses a folder that is there already, unless it is a checkpoint to be replaced.

    Raises:
      CheckpointError: it is there.
    """
    if folder.exists() and not (overwrite and (folder / "config.json").exists()):
        what = "this exists already and is no checkpoint" if overwrite else "this exists already"
        raise CheckpointError(what, where=str(folder), fix="Choose another folder.")


class Staging:
    """The folder beside `target`.

    Attributes:
      target: the place to be taken.
      folder: where to write.
      reused: files of an earlier attempt that were found finished.
    """

    def __init__(self, target: epath.Path, identity: str):
        """Opens the folder, or empties it unless its files are made from the same.

        Args:
          target: the place to be taken.
          identity: a digest of everything that the files are made from.
        """
        self.target, self._identity = target, identity
        self.folder = target.parent / f".{target.name}.partial"
        self.reused: list[str] = []
        self._finished = self._read_manifest()
        if self._finished is None:
            self._finished = {}
            with _explained(self.folder):
                self.folder.rmtree(missing_ok=True)
                self.folder.mkdir(parents=True)
                self._write_manifest()

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
        assert self._finished is not None
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
        """Ends the work: what is not of it goes, and the folder gets its name."""
        assert self._finished is not None
        (self.folder / _MANIFEST).unlink()
        for path in [path for path in _files(self.folder) if _relative(self.folder, path) not in self._finished]:
            path.unlink()
        replaced = self.target.parent / f".{self.target.name}.replaced"
        if self.target.exists():
            replaced.rmtree(missing_ok=True)
            self.target.rename(replaced)
        self.folder.rename(self.target)
        replaced.rmtree(missing_ok=True)

    def remove(self) -> None:
        """Gives up."""
        self.folder.rmtree(missing_ok=True)

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


@contextlib.contextmanager
def _explained(path: epath.Path) -> Iterator[None]:
    """Says of an error of the operating system which file it concerns."""
    try:
        yield
    except OSError as error:
        fix = "Make room or choose another folder; the same command goes on after the files that are finished."
        raise CheckpointError(f"cannot be written ({error})", where=str(path), fix=fix) from error


def _files(folder: epath.Path) -> list[epath.Path]:
    inside = list(folder.iterdir())
    return [file for path in inside for file in (_files(path) if path.is_dir() else [path])]


def _relative(folder: epath.Path, path: epath.Path) -> str:
    return path.relative_to(folder).as_posix()
