"""The data sets that a mixture may name, opened.

NAME                   DATA/NAME, prepared by `python -m train prepare`, or a folder of `tf.train.Example`s
tfds:NAME/SPLIT        prepared by tensorflow-datasets, see `train.data.examples`
scenes:NAME            drawn when it is read, see `train.scenes`
"""

import difflib
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grain

from train.data.examples import example_files, open_examples, open_tfds, split_mapping
from train.data.store import INDEX, read_shards
from vila_jax.errors import ConfigError

_DRAWN = {"scenes": "train.scenes"}
"""Scheme -> the module whose `DRAWN` has what opens its data sets, by their whole names."""


def open_source(name: str, data: Path) -> grain.MapDataset[Any]:
    """A data set by its name in a mixture: its records by number, encoded or as they are.

    Args:
      name: see above.
      data: folder of the data sets.

    Raises:
      ConfigError: there is no such data set, or it is unfinished or damaged.
    """
    scheme, colon, rest = name.partition(":")
    if colon and scheme == "tfds":
        return open_tfds(rest, data)
    if colon and scheme in _DRAWN:
        return _drawn(name, importlib.import_module(_DRAWN[scheme]).DRAWN)
    if colon and "@" not in scheme:
        fix = f"There are {', '.join(f'{known}:' for known in ('tfds', *_DRAWN))}."
        raise ConfigError(f"unknown kind of data set {scheme!r}", where=name, fix=fix)
    folder = data / split_mapping(name)
    if not (folder / INDEX).exists() and example_files(folder):
        return open_examples(name, data)
    if not folder.is_dir():
        raise ConfigError(f"there is no data set {name!r}", where=str(data), fix=_hint(name, _prepared(data)))
    return read_shards(folder)


def _drawn(name: str, drawn: Mapping[str, Callable[[], grain.MapDataset[Any]]]) -> grain.MapDataset[Any]:
    if name not in drawn:
        raise ConfigError(f"there is no data set {name!r}", where="mixture", fix=_hint(name, list(drawn)))
    return drawn[name]()


def _prepared(data: Path) -> list[str]:
    """Names of the data sets in a folder."""
    return sorted(str(path.parent.relative_to(data)) for path in data.glob(f"*/{INDEX}"))


def _hint(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"There are {', '.join(known)}." if known else "Make it with `python -m train prepare`."
