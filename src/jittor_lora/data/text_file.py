"""Reads text and JSON from untrusted files, and collects all their errors."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jittor_lora.data.wrong_encoding import START, advice
from jittor_lora.errors import UserError
from jittor_lora.files.untrusted import load_json, read_input, unique_keys

SHOWN = 12


class Offenders:
    """The errors in one file: all are counted, the first `SHOWN` are printed."""

    def __init__(self, path: str | os.PathLike):
        self.path, self.count, self._lines = path, 0, []

    def add(self, where: str, expected: str, found: Any) -> None:
        """Add that at `where` something other than `expected` was found; `found` is shown shortened."""
        self.count += 1
        if self.count <= SHOWN:
            self._lines.append(f"  {where}: expected {expected}, found {shown(found)}")

    def check(self, advice: str) -> None:
        """Raise if there were any.

        Raises:
            UserError: with the file, the number of offenders, the first of them, and `advice`.
        """
        if self.count:
            more = [f"  … and {self.count - SHOWN:,} more"] if self.count > SHOWN else []
            places = "1 place is" if self.count == 1 else f"{self.count:,} places are"
            raise UserError("\n".join([f"{self.path}: {places} not as expected.", *self._lines, *more, advice]))


def shown(value: Any) -> str:
    """A value as a short phrase for a message; containers by their keys or size only."""
    if value is MISSING:
        return "nothing"
    if isinstance(value, dict):
        return f"an object with {_listed(list(value))}" if value else "an empty object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 60 else f"{text[:59]}…"


class _Missing:
    """The type of `MISSING`, which stands for an absent key."""


MISSING = _Missing()


def is_text(value: Any) -> bool:
    """Whether it is a string that UTF-8 can encode, which half a surrogate pair from a JSON escape is not."""
    if not isinstance(value, str):
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_text(path: str | os.PathLike) -> str:
    """The text of a file, without a UTF-8 byte order mark.

    Raises:
        UserError: no such file, not a file, not readable, empty, or not UTF-8 (with the likely encoding).
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: a folder, expected a file. Name the data file itself.")
    if not path.exists():
        raise UserError(f"{path}: no such file.")
    raw = read_input(path)
    if not raw.strip():
        raise UserError(f"{path}: the file is empty.")
    try:
        text = raw.decode("utf-8-sig")
        wrong = raw[:START].find(0)
    except UnicodeDecodeError as error:
        wrong = error.start
    if wrong >= 0:
        raise UserError(f"{path}: expected UTF-8, found byte 0x{raw[wrong]:02x} at offset {wrong:,} (line "
                        f"{raw.count(10, 0, wrong) + 1:,}). {advice(raw, path)}")
    return text


def parse_json(text: str) -> Any:
    """The value of a JSON text, stricter than `json.loads`: no NaN, no duplicate keys, no numbers of excessive length.

    Raises:
        ValueError: with a message for the user (`str(error)`), without the file's name.
    """
    try:
        return load_json(text, object_pairs_hook=unique_keys(shown), parse_constant=_constant)
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
            raise ValueError("the JSON text ends too early: the file is cut off") from error
        raise ValueError(f"not JSON: {error.msg} at line {error.lineno:,}, column {error.colno:,}") from error


def _listed(keys: Sequence[str]) -> str:
    return ", ".join(shown(key) for key in keys[:4]) + (", …" if len(keys) > 4 else "")


def _constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
