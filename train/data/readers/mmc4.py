"""MMC4: documents with pictures between their sentences.

Each line of a `.jsonl` shard (or of the `.jsonl.zip` that is published) is a document:

    {"url": …, "text_list": [sentence, …],
     "image_info": [{"image_name": "b9040a0dbb22.jpg", "matched_text_index": 2, "matched_sim": 0.27}, …]}

The pictures lie in a folder, or in the tar of the shard's name beside it. A document in a WebDataset tar is one `.json`
file with its pictures after it. Pictures that are gone (most links are dead) are left out; a document without any left
is not yielded. The pickles of VILA's own preparation are refused.
"""

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from train.data.readers.files import PICTURE_SUFFIXES, grouped, inside, shards, tar_members
from train.data.records import BadSample, Document, Picture

Find = Callable[[str], Picture | None]


def read_mmc4(path: Path, images: Path | None = None) -> Iterator[Document | BadSample]:
    """Documents of one shard, or of all shards of a folder.

    Args:
      path: a `.jsonl`, `.jsonl.zip` or `.tar` file, or a folder of them.
      images: folder of the pictures; by default the folder of the shard.

    Raises:
      ConfigError: there is no shard, or there are pickles.
    """
    found = shards(path, (".jsonl", ".jsonl.zip", ".tar"))
    beside = {_stem(shard) for shard in found if not shard.name.endswith(".tar")}
    for shard in found:
        if shard.name.endswith(".tar"):
            if _stem(shard) not in beside:  # else it holds the pictures of its namesake
                yield from _from_webdataset(shard)
            continue
        yield from _from_lines(shard, images)


def _stem(shard: Path) -> Path:
    return shard.with_name(shard.name.split(".")[0])


def _from_lines(shard: Path, images: Path | None) -> Iterator[Document | BadSample]:
    try:
        find = _finder(shard, images)
        lines = _lines(shard)
    except BadSample as error:
        yield error
        return
    for number, line in enumerate(lines, start=1):
        where = f"{shard.name} line {number}"
        try:
            yield document(json.loads(line), find, where)
        except ValueError as error:
            yield BadSample("damaged record", f"not JSON: {error}", where)
        except BadSample as error:
            yield error


def _from_webdataset(shard: Path) -> Iterator[Document | BadSample]:
    try:
        for key, files in grouped(tar_members(shard)):
            where = f"{shard.name}/{key}"
            pictures = {f"{key.rpartition('/')[2]}.{suffix}": data for suffix, data in files.items()}
            try:
                yield document(json.loads(files.get("json", b"")), pictures.get, where)
            except ValueError as error:
                yield BadSample("damaged record", f"not JSON: {error}", where)
            except BadSample as error:
                yield error
    except BadSample as error:
        yield error


def document(sample: Any, find: Find, where: str) -> Document:
    """One document with those of its pictures that are there.

    Raises:
      BadSample: it has no sentences, a picture belongs to none, or no picture is left.
    """
    sentences = sample.get("text_list") if isinstance(sample, dict) else None
    if not isinstance(sentences, list) or not all(isinstance(s, str) for s in sentences) or not sentences:
        raise BadSample("empty document", "there is no `text_list`", where)
    kept: list[tuple[Picture, int]] = []
    for info in sample.get("image_info") or []:
        index = info.get("matched_text_index")
        if not isinstance(index, int) or not 0 <= index < len(sentences):
            raise BadSample("wrong number of pictures", f"a picture belongs to sentence {index}", where)
        picture = find(str(info.get("image_name", "")))
        if picture is not None:
            kept.append((picture, index))
    if not kept:
        raise BadSample("missing picture", "none of its pictures is there", where)
    pictures, matched = zip(*kept, strict=True)
    return Document(where, tuple(sentences), tuple(matched), tuple(pictures))


def _finder(shard: Path, images: Path | None) -> Find:
    """Where the pictures of a shard are looked up by name."""
    tar = _stem(shard).with_suffix(".tar")
    if images is None and tar.is_file():
        members = {name.rpartition("/")[2]: data for name, data in tar_members(tar) if name.endswith(PICTURE_SUFFIXES)}
        return members.get
    root = shard.parent if images is None else images

    def find(name: str) -> str | None:
        try:
            return str(inside(root, name, name))
        except BadSample:
            return None

    return find


def _lines(shard: Path) -> Iterator[str]:
    if shard.stat().st_size == 0:
        raise BadSample("empty shard", "the file has 0 bytes", shard.name)
    if shard.suffix != ".zip":
        return iter(shard.read_text(encoding="utf-8", errors="replace").splitlines())
    try:
        with zipfile.ZipFile(shard) as archive:
            [name] = [n for n in archive.namelist() if n.endswith(".jsonl")]
            text = io.TextIOWrapper(archive.open(name), encoding="utf-8", errors="replace").read()
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise BadSample("broken shard", f"it cannot be unpacked: {error}", shard.name) from error
    return iter(text.splitlines())
