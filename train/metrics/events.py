"""TensorBoard's event files, of which a run needs the scalars alone.

A file is a row of records: length, checksum of the length, an `Event` message, its checksum; numbers are little-endian.
The messages are protocol buffers (`tensorboard/compat/proto/event.proto`, `summary.proto`):

    Event    1 wall_time  double     2 step  int64     3 file_version  string     5 summary  Summary
             7 session_log  SessionLog
    Summary  1 value  repeated       Value  1 tag  string     2 simple_value  float
    SessionLog  1 status  enum, START = 1

We write these few fields ourselves: the packages that do so import torch or TensorFlow where they find them.
"""

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

_POLYNOMIAL = 0x82F63B78  # CRC-32C, reflected


class EventFile:
    """A new event file in a folder.

    Args:
      folder: is made if needed.
      restart: a step: TensorBoard forgets what older files of the folder say of it and of later ones.
    """

    def __init__(self, folder: Path, restart: int | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        self._file = (folder / f"events.out.tfevents.{now:.6f}.{socket.gethostname()}.{os.getpid()}").open("wb")
        self._event(0, _field(3, b"brain.Event:2"))
        if restart is not None:
            self._event(restart, _field(7, _number(1, 1)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """The values of a step, by their tags."""
        entries = (_field(1, tag.encode()) + _key(2, 5) + struct.pack("<f", value) for tag, value in values.items())
        self._event(step, _field(5, b"".join(_field(1, entry) for entry in entries)))

    def close(self) -> None:
        """Nothing can be written any more."""
        self._file.close()

    def _event(self, step: int, content: bytes) -> None:
        event = _key(1, 1) + struct.pack("<d", time.time()) + _number(2, step) + content
        length = struct.pack("<Q", len(event))
        self._file.write(length + _checksum(length) + event + _checksum(event))
        self._file.flush()


def _field(number: int, content: bytes) -> bytes:
    """A string or a message."""
    return _key(number, 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    """An integer."""
    return _key(number, 0) + _varint(value)


def _key(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _table() -> tuple[int, ...]:
    entries = []
    for byte in range(256):
        entry = byte
        for _ in range(8):
            entry = entry >> 1 ^ (_POLYNOMIAL if entry & 1 else 0)
        entries.append(entry)
    return tuple(entries)


_TABLE = _table()


def _checksum(data: bytes) -> bytes:
    """CRC-32C, masked as TensorFlow does it (`tensorflow/core/lib/hash/crc32c.h`)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
