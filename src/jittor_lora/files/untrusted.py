"""Reads untrusted files: regular ones only, of limited size, their JSON of limited depth.

Opening a pipe could block forever, reading a device never end, and deep nesting overflow the stack of its readers.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from typing import Any, BinaryIO, Callable

from jittor_lora.errors import UserError

LARGEST = 1 << 30  # bytes
DEEPEST = 100  # lists and objects within each other
LONGEST_NUMBER = 100  # digits; a float holds whole numbers of up to 308
NESTED = "values nested too deeply"
_KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))


def open_input(path: str | os.PathLike) -> BinaryIO:
    """Open a regular file for reading; never blocks.

    Raises:
        UserError: it cannot be opened, or is a folder, a pipe or a device.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a path that no file system has
        raise unreadable(path, error) from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        found = next((kind for is_kind, kind in _KINDS if is_kind(mode)), "a device")
        raise UserError(f"{path}: expected a regular file; found {found}. Name the file itself, or save it as one.")
    return os.fdopen(descriptor, "rb")


def unreadable(path: str | os.PathLike, error: OSError | ValueError) -> UserError:
    """What to raise for an error of the system at reading or mapping a file."""
    if getattr(error, "errno", None) == errno.ENOMEM:
        return UserError(f"{path}: out of memory in reading it. Close other programs, or use a smaller file.")
    return UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).")


def read_input(path: str | os.PathLike, most: int = LARGEST) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises:
        UserError: as for `open_input`; or it is larger, or cannot be read.
    """
    with open_input(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > most:
            raise UserError(f"{path}: expected at most {most:,} bytes; found {size:,}. Name the right file, or a part "
                            "of it.")
        try:
            return stream.read()
        except OSError as error:
            raise unreadable(path, error) from error


def load_json(text: str | bytes, **hooks: Any) -> Any:
    """`json.loads` for untrusted text; `hooks` are passed on.

    Raises:
        ValueError: not JSON, nested too deeply, or a number with too many digits.
    """
    try:
        value = json.loads(text, **{"parse_int": _integer, **hooks})
    except RecursionError as error:
        raise ValueError(NESTED) from error
    level = [value]
    for _ in range(DEEPEST):
        level = [item for holder in level if isinstance(holder, (dict, list))
                 for item in (holder.values() if isinstance(holder, dict) else holder)
                 if isinstance(item, (dict, list))]
        if not level:
            return value
    raise ValueError(NESTED)


def unique_keys(shown: Callable[[str], str] = repr) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """An `object_pairs_hook` that refuses duplicate keys.

    Args:
        shown: formats a key for the message.
    """
    def hook(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            seen: set[str] = set()
            duplicate = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise ValueError(f"the key {shown(duplicate)} occurs twice in one JSON object")
        return values

    return hook


def _integer(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"a number of {len(digits):,} digits: {digits[:20]}…")
    return int(digits)
