"""Where the members of a zip archive lie, of one that stores them uncompressed, as PyTorch does.

The fields are those of PKWARE's APPNOTE, section 4.3: at the end of the file the end record; it gives the place of the
central directory, which has an entry per member; an entry gives the place of the member's local header, after which its
bytes come. An archive above 4 GB has a second end record and, in the entries, wider numbers ("zip64").
"""

from __future__ import annotations

import mmap
import struct
from typing import Iterator, NamedTuple

MOST_MEMBERS = 100_000
LARGEST_DIRECTORY = 16 << 20  # bytes
_END, _END64, _LOCATOR, _ENTRY, _LOCAL = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2", b"PK\3\4"
_END_SIZE, _LOCATOR_SIZE, _END64_SIZE, _ENTRY_SIZE, _LOCAL_SIZE = 22, 20, 56, 46, 30
_LONGEST_COMMENT = 0xFFFF
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF  # "see zip64"
_ENCRYPTED = 0x2041  # bits of the flags: encrypted, strongly, with a masked directory
_ZIP64 = 1  # extra field
_SHOWN = 60  # characters


class ZipError(ValueError):
    """The file is not such an archive; the message is part of a sentence."""


class Member(NamedTuple):
    """Bytes [begin, end) of the file, and their CRC-32."""

    begin: int
    end: int
    crc: int


def zip_members(data: mmap.mmap) -> dict[str, Member]:
    """Name -> place of each member.

    Raises:
        ZipError: the file is damaged; a member is compressed, encrypted, named twice, or overlaps another one; or there
            are too many.
    """
    members: dict[str, Member] = {}
    for name, member in _entries(data, *_directory(data)):
        if name in members:
            raise ZipError(f"the member {name[:_SHOWN]!r} twice")
        members[name] = member
    position = 0
    for name, member in sorted(members.items(), key=lambda item: item[1][:2]):
        if member.begin < position:
            raise ZipError(f"the member {name[:_SHOWN]!r} overlapping another one")
        position = member.end
    return members


def _directory(data: mmap.mmap) -> tuple[int, int, int]:
    """The place of the central directory, its end and its number of entries."""
    end = data.rfind(_END, max(0, len(data) - _END_SIZE - _LONGEST_COMMENT))
    if end < 0 or end + _END_SIZE > len(data):
        raise ZipError("an archive without its end: the download may be incomplete, fetch the file again")
    count, size, start = struct.unpack_from("<HII", data, end + 10)
    if _FULL16 == count or _FULL32 in (size, start):
        locator = end - _LOCATOR_SIZE
        if locator >= 0 and data[locator : locator + 4] == _LOCATOR:
            (end,) = struct.unpack_from("<Q", data, locator + 8)
            if end + _END64_SIZE > len(data) or data[end : end + 4] != _END64:
                raise ZipError("an archive with a damaged end record")
            count, size, start = struct.unpack_from("<QQQ", data, end + 32)
    if count > MOST_MEMBERS or size > LARGEST_DIRECTORY:
        raise ZipError(f"{count:,} members; expected at most {MOST_MEMBERS:,}")
    if start + size > end:
        raise ZipError("an archive whose directory lies outside the file")
    return start, start + size, count


def _entries(data: mmap.mmap, at: int, end: int, count: int) -> Iterator[tuple[str, Member]]:
    for _ in range(count):
        if at + _ENTRY_SIZE > end or data[at : at + 4] != _ENTRY:
            raise ZipError("an archive with a damaged directory")
        flags, method = struct.unpack_from("<HH", data, at + 8)
        crc, packed, size, name_length, extra_length, comment_length = struct.unpack_from("<IIIHHH", data, at + 16)
        (header,) = struct.unpack_from("<I", data, at + 42)
        name_end = at + _ENTRY_SIZE + name_length
        following = name_end + extra_length + comment_length
        if following > end:
            raise ZipError("an archive with a damaged directory")
        name = data[at + _ENTRY_SIZE : name_end]
        size, packed, header = _widened(data[name_end : name_end + extra_length], size, packed, header)
        shown = name.decode("utf-8", "replace")
        if flags & _ENCRYPTED or method or packed != size:
            how = "encrypted" if flags & _ENCRYPTED else "compressed"
            raise ZipError(f"the member {shown[:_SHOWN]!r} {how}, which PyTorch's never are")
        if header + _LOCAL_SIZE > len(data) or data[header : header + 4] != _LOCAL:
            raise ZipError(f"no header of the member {shown[:_SHOWN]!r} where its place is said to be")
        local_name, local_extra = struct.unpack_from("<HH", data, header + 26)
        begin = header + _LOCAL_SIZE + local_name + local_extra
        if data[header + _LOCAL_SIZE : header + _LOCAL_SIZE + local_name] != name:
            raise ZipError(f"the member {shown[:_SHOWN]!r} under another name in its header")
        if begin + size > len(data):
            raise ZipError(f"the member {shown[:_SHOWN]!r} ending after the file")
        yield shown, Member(begin, begin + size, crc)
        at = following


def _widened(extra: bytes, *numbers: int) -> tuple[int, ...]:
    """The numbers with those that say "see zip64" replaced by the wider ones in the extra fields."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == _ZIP64:
            wide = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4) if at + 4 + length <= len(extra) else ())
            return tuple(next(wide, number) if number == _FULL32 else number for number in numbers)
        at += 4 + length
    return numbers
