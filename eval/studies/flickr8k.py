"""Reads Flickr8k as it is published: a folder of photos, and captions in either of two files.

    Flickr8k_text/Flickr8k.token.txt   1000268201_693b08cb0e.jpg#0<TAB>A child in a pink dress is climbing ...
    captions.txt                       image,caption                                    (a header, then CSV)
                                       1000268201_693b08cb0e.jpg,A child in a pink dress is climbing ...

Published copies are not flawless (one caption file names a photo that does not exist): lines that cannot be read and
photos that are missing or damaged are left out and counted.
"""

import collections
import csv
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from vila_jax.errors import ImageError, VilaError
from vila_jax.vision.open import open_image

TOKEN_FILES = ("Flickr8k.token.txt", "Flickr8k_text/Flickr8k.token.txt")
CSV_FILES = ("captions.txt",)
PHOTO_FOLDERS = ("Images", "Flickr8k_Dataset/Flicker8k_Dataset", "Flicker8k_Dataset", "Flickr8k_Dataset")

_TOKEN_LINE = re.compile(r"([^\t#]+)#\d+\t(.+)")


@dataclasses.dataclass(frozen=True)
class Problems:
    """What was left out: lines of the caption file, photos that it names but that are not there, damaged photos."""

    malformed_lines: int = 0
    missing_photos: int = 0
    damaged_photos: int = 0

    def __str__(self) -> str:
        counts = {name.replace("_", " "): count for name, count in dataclasses.asdict(self).items() if count}
        return ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing"


@dataclasses.dataclass(frozen=True)
class Listing:
    """Photos that are there, by name, with their captions in the order of the file; and what was left out."""

    photos: dict[Path, tuple[str, ...]]
    problems: Problems


class Corpus(NamedTuple):
    """Photos resized to squares, and captions; caption c belongs to photo `owners[c]`."""

    photos: UInt8[np.ndarray, "N h w 3"]
    captions: tuple[str, ...]
    owners: Int[np.ndarray, " C"]


def list_photos(folder: Path) -> Listing:
    """Reads the caption file of a folder and looks for the photos that it names.

    Where both forms of captions lie in the folder, the first of the list above is read.

    Raises:
      VilaError: there is no caption file, no folder of photos, or not one photo with a caption.
    """
    captions = _first(folder, (*TOKEN_FILES, *CSV_FILES), "file of captions")
    photos = _first(folder, PHOTO_FOLDERS, "folder of photos")
    lines = _csv_lines(captions) if captions.name in CSV_FILES else _token_lines(captions)
    found: dict[str, list[str]] = collections.defaultdict(list)
    malformed = 0
    for line in lines:
        if line is None:
            malformed += 1
        else:
            found[line[0]].append(line[1])
    present = {photos / name: tuple(found[name]) for name in sorted(found) if (photos / name).is_file()}
    problems = Problems(malformed, missing_photos=len(found) - len(present))
    if not present:
        raise VilaError(f"no photo with a caption (left out: {problems})", where=str(captions))
    return Listing(present, problems)


def _first(folder: Path, names: tuple[str, ...], what: str) -> Path:
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise VilaError(f"no {what}", where=str(folder), fix=f"One of these must be there: {', '.join(names)}.")


def _token_lines(path: Path) -> Iterator[tuple[str, str] | None]:
    """Name of the photo and caption of each line, None for a malformed one."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        match = _TOKEN_LINE.fullmatch(line.rstrip())
        if line.strip():
            yield (_plain(match[1]), match[2].strip()) if match and _plain(match[1]) else None


def _csv_lines(path: Path) -> Iterator[tuple[str, str] | None]:
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = csv.reader(file)
        next(rows, None)  # the header
        for row in rows:
            if row:
                name, caption = (row[0], row[1].strip()) if len(row) == 2 else ("", "")
                yield (_plain(name), caption) if _plain(name) and caption else None


def _plain(name: str) -> str:
    """The name of a file, empty where it is none: a caption file must not lead out of its folder."""
    name = name.strip()
    return "" if "/" in name or "\\" in name or name in (".", "..") else name


def load(listing: Listing, side: int) -> tuple[Corpus, Problems]:
    """Reads photos and resizes each to `side` x `side` pixels, whatever its shape.

    Returns:
      The corpus without damaged photos, and all that was left out.

    Raises:
      VilaError: not one photo can be read.
    """
    photos: list[np.ndarray] = []
    captions: list[str] = []
    owners: list[int] = []
    damaged = 0
    for path, own in listing.photos.items():
        try:
            photo = open_image(path).resize((side, side), Image.Resampling.BICUBIC)
        except ImageError:
            damaged += 1
            continue
        owners += [len(photos)] * len(own)
        captions += own
        photos.append(np.asarray(photo))
    problems = dataclasses.replace(listing.problems, damaged_photos=damaged)
    if not photos:
        raise VilaError(f"no photo can be read (left out: {problems})")
    return Corpus(np.stack(photos), tuple(captions), np.array(owners)), problems


def split(corpus: Corpus, train: int, test: int) -> tuple[Corpus, Corpus]:
    """Two parts with no photo in common, the same at every call; three quarters and one where there are too few."""
    count = len(corpus.photos)
    if count < train + test:
        train, test = count - count // 4, count // 4
    order = np.random.default_rng(0).permutation(count)
    return _part(corpus, order[:train]), _part(corpus, order[train : train + test])


def _part(corpus: Corpus, chosen: Int[np.ndarray, " M"]) -> Corpus:
    place = np.full(len(corpus.photos), -1)
    place[chosen] = np.arange(len(chosen))
    inside = np.flatnonzero(place[corpus.owners] >= 0)
    captions = tuple(corpus.captions[i] for i in inside)
    return Corpus(corpus.photos[chosen], captions, place[corpus.owners[inside]])
