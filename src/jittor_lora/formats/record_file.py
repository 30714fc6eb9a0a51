"""Our own small JSON files beside an adapter: fields of known types, from a folder that is not trusted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable, NamedTuple, Sequence

from jittor_lora.errors import UserError
from jittor_lora.files.untrusted import unique_keys
from jittor_lora.formats.adapter_check import regular_file, show
from jittor_lora.formats.hugging_face import read_json


class Field(NamedTuple):
    """A key, what it holds in words, and whether a value is that."""

    key: str
    expected: str
    accepts: Callable[[Any], bool]


def read_record_file(path: Path, fields: Sequence[Field], largest: int, advice: str) -> dict[str, Any] | None:
    """The values of a record; None if there is no such file.

    Args:
        largest: bytes that it may have.
        advice: what to do about a damaged one.

    Raises:
        UserError: it is too large, no JSON object, or fields are not as expected; all are listed.
    """
    if not os.path.lexists(path):
        return None
    if os.path.getsize(regular_file(path)) > largest:
        raise UserError(f"{path}: expected at most {largest:,} bytes; found {os.path.getsize(path):,}.")
    values = read_json(path, unique_keys(show))
    wrong = [f"{field.key}: expected {field.expected}, found {show(values.get(field.key))}" for field in fields
             if not field.accepts(values.get(field.key))]
    if wrong:
        raise UserError("\n  ".join([f"{path}:", *wrong]) + f"\n{advice}")
    return values
