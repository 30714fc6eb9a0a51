"""Untrusted files: ordinary ones alone, no larger than they may be, their JSON no deeper than any needs.

A pipe would be waited for without end, a device read without end, and deep nesting overflows whatever walks through it.
"""

from __future__ import annotations

import json
import os
import stat
from typing import Any, BinaryIO, Callable

from jittor_lora.errors import UserError

LARGEST = 1 << 30  # bytes
DEEPEST = 100  # lists and objects within each other
LONGEST_NUMBER = 100  # digits; beyond 308 a whole number is no float
NESTED = "values nested too deeply"
_KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))


def open_input(path: str | os.PathLike) -> BinaryIO:
    """Open an ordinary file for reading; never waits.

    Raises:
        UserError: it cannot be opened, or is a folder, a pipe or a device.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a path that no file system has
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        found = next((kind for is_kind, kind in _KINDS if is_kind(mode)), "a device")
        raise UserError(f"{path}: expected an ordinary file; found {found}. Name the file itself, or save it as one.")
    return os.fdopen(descriptor, "rb")


def read_input(path: str | os.PathLike, most: int = LARGEST) -> bytes:
    """The content of an ordinary file of at most `most` bytes.

    Raises:
        UserError: as `open_input`; or it is larger, or cannot be read.
    """
    with open_input(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > most:
            raise UserError(f"{path}: expected at most {most:,} bytes; found {size:,}. Name the right file, or a part "
                            "of it.")
        try:
            return stream.read()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from error


def load_json(text: str | bytes, **hooks: Any) -> Any:
    """`json.loads` of what may be hostile; `hooks` are its own.

    Raises:
        ValueError: not JSON, nested too deeply, or a number of too many digits.
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
    """An `object_pairs_hook` that refuses a key that stands twice in an object.

    Args:
        shown: how the message spells it.
    """
    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise ValueError(f"the key {shown(twice)} occurs twice in one JSON object")
        return values

    return made


def _integer(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"a number of {len(digits):,} digits: {digits[:20]}…")
    return int(digits)
