"""Scalars in TensorBoard's event files.

Why not tensorboardX: importing it imports torch where torch is installed (2.7 s, a second OpenMP runtime beside
Jittor's), and it buffers in a thread, so a killed run loses its last points.

Format: a file is a sequence of records `length uint64, masked CRC-32C of the length, payload, masked CRC-32C of the
payload` (little endian); each payload is an `Event` message (tensorflow/core/util/event.proto), of which only
wall_time (1), step (2), file_version (3), summary (5) and session_log (7) are written.
"""

from __future__ import annotations

import math
import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path


class EventWriter:
    """Appends scalars to a new event file in `folder`; every call reaches the operating system before it returns.

    TensorBoard reads the files of a folder in order of their names, so a resumed run adds a file: `purge_after=s` hides
    points beyond step s in earlier files.

    Raises:
        OSError: the folder or file cannot be written.
    """

    def __init__(self, folder: str | os.PathLike, purge_after: int | None = None):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        index = len(list(folder.glob("events.out.tfevents.*")))
        self._file = open(folder / f"events.out.tfevents.{int(time.time()):010d}.{index:04d}", "xb")
        self._append(_event(_bytes(3, b"brain.Event:2")))
        if purge_after is not None:
            start = _bytes(7, _key(1, 0) + _varint(1))  # SessionLog(status=START)
            self._append(_event(start, step=purge_after + 1))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write `values` (tag → number) at `step`."""
        summary = b"".join(_bytes(1, _bytes(1, tag.encode()) + _key(2, 5) + struct.pack("<f", _float32(value)))
                           for tag, value in values.items())
        self._append(_event(_bytes(5, summary), step=step))

    def sync(self) -> None:
        """Flush everything written to the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _append(self, event: bytes) -> None:
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked_crc(length) + event + _masked_crc(event))
        self._file.flush()


def _event(content: bytes, step: int = 0) -> bytes:
    return _key(1, 1) + struct.pack("<d", time.time()) + _key(2, 0) + _varint(step) + content


def _float32(value: float) -> float:
    """`struct` rejects finite numbers beyond float32's range; TensorBoard shows them as infinite."""
    return value if not math.isfinite(value) or abs(value) < 3.4e38 else math.copysign(math.inf, value)


def _key(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _bytes(field: int, content: bytes) -> bytes:
    return _key(field, 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)  # Castagnoli's polynomial, reflected
        table.append(byte)
    return tuple(table)


_CRC_TABLE = _crc_table()


def _masked_crc(content: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in content:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
