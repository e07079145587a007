"""Whether the files of a finished folder are still what was written.

A seal lists every file with its size and CRC-32. Orbax writes a checkpoint atomically, but does not notice every later
harm to its files (a flipped bit, a copy that ended early); a seal does, before anything is read into a model. It guards
against damage, not against forgery. Several hosts share the work: host `i` of `n` writes `seal.i-of-n.json`, for every
`n`-th file. A run that is killed between a save and its seals leaves a folder that is only read through.
"""

import json
import re
import zlib
from collections.abc import Iterator

import tensorstore as ts
from etils import epath

_NAME = re.compile(r"seal\.(\d+)-of-(\d+)\.json")
_BLOCK = 1 << 22


def seal(folder: epath.Path, *, host: int = 0, hosts: int = 1) -> None:
    """Seals this host's share of a folder, which nobody may write to any more."""
    own = {name: [folder.joinpath(name).stat().length, _crc(folder / name)] for name in _files(folder)[host::hosts]}
    target = folder / f"seal.{host}-of-{hosts}.json"
    unfinished = target.with_name(target.name + ".tmp")
    unfinished.write_text(json.dumps(own))
    unfinished.replace(target)


def is_sealed(folder: epath.Path) -> bool:
    """Whether the seals of all hosts are there; a run that was killed right after a save leaves it without."""
    found = _seals(folder)
    return bool(found) and len(found) == int(_NAME.fullmatch(found[0].name)[2])  # type: ignore[index]


def damage(folder: epath.Path, *, host: int = 0, hosts: int = 1) -> str | None:
    """What is wrong with a sealed folder; None if nothing is. Sizes are looked at by every host, contents in turn."""
    expected: dict[str, list[int]] = {}
    for path in _seals(folder):
        try:
            expected |= json.loads(path.read_text())
        except ValueError:
            return f"{path.name} cannot be read"
    for number, (name, (size, crc)) in enumerate(sorted(expected.items())):
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().length != size:
            return f"{name} has {path.stat().length} bytes instead of {size}"
        if number % hosts == host and _crc(path) != crc:
            return f"{name} has changed"
    return None


def unreadable(state: epath.Path, *, host: int = 0, hosts: int = 1) -> str | None:
    """What cannot be read of the arrays that Orbax wrote into a folder (OCDBT); None if all can. For what has no seal.

    Every host reads its share, one stored value after the other. Orbax reads all at once, and when one fails it closes
    the event loop that the others still end in, which Python tells on the terminal later.
    """
    key = b"the list of arrays"
    try:
        store = ts.KvStore.open({"driver": "ocdbt", "base": f"{state.as_uri()}/"}).result()
        for key in sorted(store.list().result())[host::hosts]:
            if not store.read(key).result().value:  # of a file that is missing; neither numbers nor forms are empty
                return f"{key.decode()} is missing"
    except (ValueError, LookupError, OSError, RuntimeError) as error:
        return f"{key.decode()}: {error}"
    return None


def _seals(folder: epath.Path) -> list[epath.Path]:
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name)) if folder.exists() else []


def _files(folder: epath.Path) -> list[str]:
    """Names of all files below a folder, seals left out."""

    def below(place: epath.Path, prefix: str) -> Iterator[str]:
        for path in place.iterdir():
            if path.is_dir():
                yield from below(path, f"{prefix}{path.name}/")
            elif not path.name.startswith("seal."):
                yield prefix + path.name

    return sorted(below(folder, ""))


def _crc(path: epath.Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value
