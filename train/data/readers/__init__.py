"""Data sets in the forms in which they are published.

A reader goes through the files of a data set and yields `Record`s, and a `BadSample` for whatever cannot be one, so
that nothing is lost in silence.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from train.data.readers.coyo import read_coyo
from train.data.readers.llava import read_llava
from train.data.readers.mmc4 import read_mmc4
from train.data.readers.vflan import read_vflan
from train.data.records import BadSample, Record

Reader = Callable[..., Iterator[Record | BadSample]]

READERS: dict[str, Reader] = {"llava": read_llava, "mmc4": read_mmc4, "coyo": read_coyo, "vflan": read_vflan}

__all__ = ["READERS", "Path", "Reader"]
