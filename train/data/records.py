"""What a data set says, whatever form it is published in.

A record holds its pictures as encoded bytes, or as the path of a file that is read when its turn comes. It says nothing
of tokens or pixels: the same shards serve every model.
"""

import dataclasses
import itertools
import json
import struct
from typing import Any

from vila_jax.errors import VilaError

Picture = bytes | str
"""The bytes of a picture file, or its path."""


class BadSample(VilaError):
    """A sample that cannot be trained on; it is skipped, and counted under its reason.

    Args:
      reason: a few words, the same for all samples of a kind.
      what: what is wrong with this one.
      where: its id.
    """

    def __init__(self, reason: str, what: str, where: str):
        self.reason = reason
        super().__init__(what, where=where)


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Turns of a system, a user and an assistant; `<image>` stands for a picture.

    Attributes:
      messages: `{"role": …, "content": text}`, see `vila_jax.text.messages`.
      pictures: in the order of their marks.
    """

    id: str
    messages: tuple[dict[str, str], ...]
    pictures: tuple[Picture, ...] = ()


@dataclasses.dataclass(frozen=True)
class Document:
    """Sentences, and pictures that belong to them (MMC4).

    Attributes:
      matched: for every picture, the index of its sentence.
    """

    id: str
    sentences: tuple[str, ...]
    matched: tuple[int, ...]
    pictures: tuple[Picture, ...] = ()


@dataclasses.dataclass(frozen=True)
class Caption:
    """A picture and what it shows (COYO, CC3M)."""

    id: str
    text: str
    pictures: tuple[Picture, ...]


Record = Conversation | Document | Caption
_KINDS: dict[str, type[Record]] = {"conversation": Conversation, "document": Document, "caption": Caption}
_LENGTH = struct.Struct("<I")


def encode(record: Record) -> bytes:
    """A record as one string of bytes: the length of a JSON header, the header, and the pictures behind one another.

    Raises:
      ValueError: a picture is a path; read it first.
    """
    fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    pictures = fields.pop("pictures")
    if any(isinstance(picture, str) for picture in pictures):
        raise ValueError("a picture is a path")
    kind = next(name for name, own in _KINDS.items() if isinstance(record, own))
    header = json.dumps({"kind": kind, **fields, "sizes": [len(p) for p in pictures]}, ensure_ascii=False).encode()
    return b"".join([_LENGTH.pack(len(header)), header, *pictures])


def decode(data: bytes, where: str = "record") -> Record:
    """The record that `encode` wrote.

    Raises:
      BadSample: the bytes are not one.
    """
    try:
        [length] = _LENGTH.unpack_from(data)
        start = _LENGTH.size + length
        fields: dict[str, Any] = json.loads(data[_LENGTH.size : start])
        kind, sizes = _KINDS[fields.pop("kind")], fields.pop("sizes")
        ends = [start]
        for size in sizes:
            ends.append(ends[-1] + size)
        if ends[-1] != len(data):
            raise ValueError(f"{len(data)} bytes instead of {ends[-1]}")
        pictures = tuple(data[a:b] for a, b in itertools.pairwise(ends))
        lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        return kind(**(fields | lists), pictures=pictures)
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise BadSample("damaged record", f"it cannot be read: {error}", where) from error
