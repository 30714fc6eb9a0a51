"""The formats of data: how each is recognised, and its reader. A new one is a file and a line in a table."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jittor_lora.data import alpaca, messages, sharegpt
from jittor_lora.data.columns import ROLE_VALUES, Columns
from jittor_lora.data.dart import is_dart, parse_dart
from jittor_lora.data.e2e import is_e2e, parse_e2e
from jittor_lora.data.examples import Data
from jittor_lora.data.flat import is_flat, parse_rows
from jittor_lora.data.jsonl import parse_jsonl
from jittor_lora.data.records import Source, first_value
from jittor_lora.data.rows import Rows
from jittor_lora.data.squad import parse_squad
from jittor_lora.data.suggestion import unknown_fields
from jittor_lora.data.webnlg import is_webnlg, parse_webnlg
from jittor_lora.errors import UserError

_TURNS = ("role", "content", "weight", *ROLE_VALUES)


@dataclass(frozen=True)
class TextFormat:
    """A format of whole texts.

    Attributes:
        name: for messages.
        recognises: whether a text has it.
        parse: (text, path, purpose) -> data.
    """

    name: str
    recognises: Callable[[str], bool]
    parse: Callable[[str, Any, str], Data]


@dataclass(frozen=True)
class RowFormat:
    """A format of rows.

    Attributes:
        name: for messages.
        names: what `--columns` may map for it.
        recognises: whether a row has it.
        parse: (rows, path, purpose) -> data.
    """

    name: str
    names: tuple[str, ...]
    recognises: Callable[[dict[str, Any]], bool]
    parse: Callable[[Source, Any, str], Any]


def is_squad(text: str) -> bool:
    """Whether a text is SQuAD JSON, an object with "data", and not records."""
    start = text.lstrip()
    # The usual cases are decided without parsing a large file twice.
    if re.match(r'\{\s*("version"\s*:\s*"[^"]*"\s*,\s*)?"data"', start):
        return True
    if re.match(r'[^{]|\{\s*"(prompt|completion|id|messages|conversations|instruction)"', start):
        return False
    found = first_value(start)
    return found is None or isinstance(found[0], dict) and "data" in found[0]


def _is_prompts(row: dict[str, Any]) -> bool:
    return "prompt" in row or "completion" in row


# The first that recognises a text is taken.
TEXT_FORMATS = (TextFormat("E2E", is_e2e, parse_e2e), TextFormat("WebNLG", is_webnlg, parse_webnlg),
                TextFormat("SQuAD", is_squad, parse_squad))
# The first that recognises a row is taken.
ROW_FORMATS = (
    RowFormat("messages", ("messages", *_TURNS, "system", "id"), messages.is_messages, messages.parse_messages),
    RowFormat("ShareGPT", (*_TURNS, "system", "id"), sharegpt.is_sharegpt, sharegpt.parse_sharegpt),
    RowFormat("SQuAD's questions", ("context", "question", "answers", "answer", "answer_start", "title", "id"), is_flat,
              parse_rows),
    RowFormat("DART", (), is_dart, parse_dart),
    RowFormat("messages in two parts", ("prompt", "completion", *_TURNS, "system", "id"), messages.is_split,
              messages.parse_split),
    RowFormat("prompts", ("prompt", "completion", "id"), _is_prompts, parse_jsonl),
    RowFormat("Alpaca", (*alpaca.FIELDS, "id"), alpaca.is_alpaca, alpaca.parse_alpaca),
)


def read_text_format(text: str, path: str | os.PathLike, purpose: str, columns: Columns) -> Data | None:
    """The data of a text in one of `TEXT_FORMATS`, None if it has none of these.

    Raises:
        UserError: it is malformed, or has no columns to name.
    """
    found = next((form for form in TEXT_FORMATS if form.recognises(text)), None)
    if found is None:
        return None
    if columns:
        raise UserError(f"{path}: --columns {columns} has no effect, as a file in the format of {found.name} has no "
                        "columns. Leave it out.")
    return found.parse(text, path, purpose)


def read_rows(rows: Rows, purpose: str, columns: Columns) -> Any:
    """The data in rows, in the first of `ROW_FORMATS` that recognises one of the first rows.

    With `columns`, only formats that have all of its names come into question.

    Raises:
        UserError: no format recognises them, or they are malformed.
    """
    head = rows.head()
    columns.check(rows.path, head, rows.header)
    formats = [form for form in ROW_FORMATS if columns.names.keys() <= set(form.names)]
    if not formats:
        raise UserError("\n  ".join([f"--columns {columns}: no format has all of these fields:",
                                     *(f"{form.name}: {', '.join(form.names)}" for form in ROW_FORMATS if form.names)]))
    found = next((form for row in map(columns.row, head) for form in formats if form.recognises(row)), None)
    if found is None and head:
        raise UserError(unknown_fields(rows.path, head, rows.header))
    try:
        return (found.parse if found else parse_jsonl)(rows, rows.path, purpose)
    except UserError as error:
        if not columns:
            raise
        raise UserError(f"{error}\nWith --columns {columns}.") from error
