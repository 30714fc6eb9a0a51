"""The rows of files: JSON, tables or parquet, one file or several parts, with their fields under our names."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Union

from jittor_lora.data.columns import ROW, Columns
from jittor_lora.data.parquet import Parquet
from jittor_lora.data.records import json_records
from jittor_lora.data.tables import Table, delimiter_of, duplicates
from jittor_lora.data.text_file import Offenders, parse_json
from jittor_lora.data.turns import MEDIA, TOOLS
from jittor_lora.errors import UserError

HEAD = 1000  # rows by which a file is recognised
# Fields that hold lists or objects; in a table, and often in parquet, they are JSON in a text.
_NESTED = ("messages", "conversations", "conversation", "history", "answers", "qas")


class Json:
    """The records of a JSON text (see `json_records`)."""

    header: Sequence[str] = ()

    def __init__(self, text: str):
        self.text = text

    def records(self, offenders: Offenders) -> Iterator[tuple[str, Any]]:
        return json_records(self.text, offenders)


Part = Union[Json, Table, Parquet]


class Rows:
    """The rows of some files, one after the other.

    Args:
        path: their name in messages.
        parts: the readers of the files.
        columns: names our fields in the rows.
    """

    def __init__(self, path: str, parts: Sequence[Part], columns: Columns):
        self.path, self._parts, self._columns = path, parts, columns

    @property
    def header(self) -> list[str]:
        """The fields that a table or parquet names before its rows."""
        return list(dict.fromkeys(name for part in self._parts for name in part.header if name))

    def records(self, offenders: Offenders) -> Iterator[tuple[str, Any]]:
        """(place, row) of each record, with our names for its fields."""
        for place, value in self._raw(offenders):
            yield place, self._columns.row(value) if isinstance(value, dict) else value

    def head(self) -> list[dict[str, Any]]:
        """The first rows that are objects, as the file has them; what is wrong in them is not reported yet."""
        values = itertools.islice(self._raw(Offenders(self.path)), HEAD)
        return [value for _, value in values if isinstance(value, dict)]

    def _raw(self, offenders: Offenders) -> Iterator[tuple[str, Any]]:
        names = self._columns.names
        nested = {*_NESTED, *(names[name] for name in _NESTED if name in names)} - {
            field for name, field in names.items() if name not in _NESTED}
        for number, part in enumerate(self._parts, 1):
            before = f"file {number}, " if len(self._parts) > 1 else ""
            for place, value in part.records(offenders):
                if isinstance(value, dict):
                    value = {key: _read(held) if key in nested else held for key, held in value.items()}
                yield before + place, value


def known_fields(columns: Columns) -> frozenset[str]:
    """The fields of a file's rows that some format reads."""
    return columns.fields.union(ROW, _NESTED, TOOLS, MEDIA, ("is_impossible", "context_text", "qas", "tripleset",
                                                                 "annotations"))


def text_reader(text: str, shown: str, columns: Columns) -> Part:
    """The reader of a text.

    Raises:
        UserError: it is neither JSON nor a table.
    """
    start = text.lstrip()
    if start.startswith(("{", "[")):
        return Json(text)
    delimiter = delimiter_of(text, known_fields(columns))
    if delimiter is None:
        raise UserError(
            f"{shown}: expected JSON, JSON Lines, CSV or TSV with a header, parquet, or E2E's lines with ||, found "
            f"text that starts with {start[:40]!r}."
        )
    table = Table(text, delimiter)
    twice = duplicates(table.header)
    if twice:
        raise UserError(f"{shown}: expected a header whose fields differ, found {', '.join(twice)} twice. Rename or "
                        "remove one of them.")
    return table


def _read(value: Any) -> Any:
    """The list or object that a text holds as JSON, or the value as it is."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            return parse_json(value)
        except ValueError:
            return value
    return value
