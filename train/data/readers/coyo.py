"""COYO, and whatever else `img2dataset` writes: a picture and its caption.

Three forms: WebDataset tars (`000000017.jpg`, `.txt`, `.json`), the same files in folders, and parquet with a column of
captions and either the bytes of the pictures or the keys of files beside it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.data.readers.files import PICTURE_SUFFIXES, grouped, shards, tar_members
from train.data.records import BadSample, Caption, Picture
from vila_jax.errors import ConfigError

_CAPTIONS = ("caption", "text", "TEXT")
_BYTES = ("jpg", "png", "webp", "image", "image_bytes")
_ROWS = 256  # of a parquet file that are held at a time


def read_coyo(path: Path, images: Path | None = None) -> Iterator[Caption | BadSample]:
    """Pairs of one shard, or of all shards of a folder.

    Args:
      path: a `.tar` or `.parquet` file, or a folder of them.
      images: with parquet without bytes, the folder of the pictures; by default the one beside the file of its name.

    Raises:
      ConfigError: there is no shard, there are pickles, or parquet files cannot be read for want of pyarrow.
    """
    for shard in shards(path, (".tar", ".parquet")):
        if shard.stat().st_size == 0:
            yield BadSample("empty shard", "the file has 0 bytes", shard.name)
        elif shard.suffix == ".tar":
            yield from _from_tar(shard)
        else:
            yield from _from_parquet(shard, images or shard.with_suffix(""))


def _from_tar(shard: Path) -> Iterator[Caption | BadSample]:
    try:
        for key, files in grouped(tar_members(shard)):
            picture = next((data for suffix, data in files.items() if f".{suffix}" in PICTURE_SUFFIXES), None)
            text = files.get("txt", files.get("caption", b"")).decode("utf-8", "replace")
            yield _caption(text, picture, f"{shard.name}/{key}")
    except BadSample as error:
        yield error


def _from_parquet(shard: Path, images: Path) -> Iterator[Caption | BadSample]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise ConfigError(
            "parquet files are read with pyarrow, which is not installed",
            where=str(shard),
            fix="pip install 'vila-jax[parquet]'",
        ) from None
    try:
        rows = (row for batch in parquet.ParquetFile(shard).iter_batches(_ROWS) for row in batch.to_pylist())
        for index, row in enumerate(rows):
            where = f"{shard.name} row {index}"
            text = next((row[name] for name in _CAPTIONS if row.get(name)), "")
            yield _caption(text, _picture(row, images), where)
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these
        yield BadSample("broken shard", f"it cannot be read: {error}", shard.name)


def _picture(row: dict[str, Any], images: Path) -> Picture | None:
    data = next((row[name] for name in _BYTES if row.get(name)), None)
    if isinstance(data, dict):  # as Hugging Face's datasets write pictures
        data = data.get("bytes")
    if data:
        return bytes(data)
    stem = images / str(row.get("key", row.get("id", "")))
    return next((str(p) for suffix in PICTURE_SUFFIXES if (p := stem.with_name(stem.name + suffix)).is_file()), None)


def _caption(text: str, picture: Picture | None, where: str) -> Caption | BadSample:
    if not text.strip():
        return BadSample("empty conversation", "the caption says nothing", where)
    if not picture:
        return BadSample("missing picture", "there is no picture", where)
    return Caption(where, text, (picture,))
