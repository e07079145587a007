"""Pictures and shards on disk."""

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from train.data.records import BadSample
from vila_jax.errors import ConfigError

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
MAX_MEMBER = 256 * 2**20  # bytes: what a tar may claim of one file


def inside(root: Path, name: str, where: str) -> Path:
    """The file `name` below `root`.

    Raises:
      BadSample: the name leads out of the folder, or there is no such file.
    """
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise BadSample("picture outside the folder", f"{name!r} leads out of {root.name}", where)
    if not path.is_file():
        raise BadSample("missing picture", f"there is no file {name!r}", where)
    return path


def shards(path: Path, suffixes: Sequence[str]) -> list[Path]:
    """The files to read: `path` itself, or those below it with such a suffix, in order of their names.

    Raises:
      ConfigError: there are none.
    """
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    found = [file for file in files if file.name.endswith(tuple(suffixes))]
    if found:
        return found
    if pickles := [file for file in files if file.suffix in (".pkl", ".pickle")]:
        raise ConfigError(
            "pickles are not read: they can hold code",
            where=str(pickles[0]),
            fix="Use the published jsonl shards with their pictures in a folder or a tar.",
        )
    raise ConfigError(f"there is no {' or '.join(suffixes)} file", where=str(path), fix="Check the path.")


def tar_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the plain files of a tar, one after another.

    Raises:
      BadSample: the tar is empty, or breaks off.
    """
    if path.stat().st_size == 0:
        raise BadSample("empty shard", "the file has 0 bytes", path.name)
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                if member.isfile() and member.size <= MAX_MEMBER:
                    file = tar.extractfile(member)
                    assert file is not None
                    yield member.name, file.read()
            if path.stat().st_size < tar.offset + tarfile.BLOCKSIZE:  # tarfile takes a cut header for the end
                raise tarfile.ReadError("its end is missing")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise BadSample("broken shard", f"it breaks off: {error}", path.name) from error


def grouped(members: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples of a WebDataset shard: files of the same name up to the first dot follow one another."""
    key = ""
    files: dict[str, bytes] = {}
    for name, data in members:
        folder, _, base = name.rpartition("/")
        stem, _, suffix = base.partition(".")
        own = f"{folder}/{stem}" if folder else stem
        if files and own != key:
            yield key, files
            files = {}
        key, files = own, files | {suffix.lower(): data}
    if files:
        yield key, files
