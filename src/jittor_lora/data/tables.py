"""CSV and TSV: a header with the names of the fields, then one record each (RFC 4180)."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterator
from typing import Any

from jittor_lora.data.text_file import Offenders
from jittor_lora.files.untrusted import LARGEST

DELIMITERS = {",": "CSV", "\t": "TSV", ";": "CSV with semicolons", "|": "CSV with bars"}
_SAMPLE = 30  # records
_LINES = re.compile(r"[^\n]*\n|[^\n]+")  # not splitlines: a field may contain U+2028 and the like
QUOTING = 'a field with the delimiter, a line break or a quote is put in quotes, and a quote in it doubled: ""'


class Table:
    """The records of a CSV text.

    Args:
        text: of the file.
        delimiter: see `delimiter_of`.
    """

    def __init__(self, text: str, delimiter: str):
        self._text, self._delimiter = text, delimiter
        self.kind = DELIMITERS[delimiter]
        self.header = header_of(text, delimiter)

    def records(self, offenders: Offenders) -> Iterator[tuple[str, Any]]:
        """(place, field -> text) of each record; an empty field is left out, as is one whose header is empty, such as
        the row numbers that pandas writes."""
        records = _parsed(self._text, self._delimiter, offenders)
        next(records, None)
        for line, found in records:
            if len(found) == len(self.header):
                yield f"line {line:,}", {name: value for name, value in zip(self.header, found) if name and value}
            else:
                offenders.add(f"line {line:,}", f"{len(self.header)} fields, as in the header", len(found))


def delimiter_of(text: str, known: Collection[str]) -> str | None:
    """The delimiter of a CSV text, by the first records; None if it is not one.

    Args:
        known: names of fields that are expected in the header.
    """
    best: tuple[int, int, int] = (0, 0, 0)
    found = None
    for delimiter in DELIMITERS:
        sample = [record for record, _ in zip(_parsed(text, delimiter), range(_SAMPLE + 1))]
        if not sample:
            continue
        header, rows = _stripped(sample[0][1]), [row for _, row in sample[1:]]
        named = len(known & set(header))
        alike = sum(len(row) == len(header) for row in rows)
        is_table = len(header) > 1 and (alike or named) or named
        if is_table and (named, alike, len(header)) > best:
            best, found = (named, alike, len(header)), delimiter
    return found


def header_of(text: str, delimiter: str) -> list[str]:
    """The names in the first record that is not blank."""
    return next((_stripped(record) for _, record in _parsed(text, delimiter)), [])


def duplicates(header: list[str]) -> list[str]:
    """Names that occur twice in a header."""
    return [name for name in dict.fromkeys(header) if name and header.count(name) > 1]


def _stripped(record: list[str]) -> list[str]:
    return [name.strip() for name in record]


def _parsed(text: str, delimiter: str, offenders: Offenders | None = None) -> Iterator[tuple[int, list[str]]]:
    """(line, fields) of each record that is not blank, the header's too, up to one that cannot be read."""
    before = csv.field_size_limit(LARGEST)
    try:
        reader = csv.reader((match.group() for match in _LINES.finditer(text)), delimiter=delimiter, strict=True)
        line = 1
        while True:
            try:
                record = next(reader, None)
            except csv.Error as error:
                if offenders is not None:
                    reason = "a carriage return outside quotes" if "new-line" in str(error) else error
                    offenders.add(f"line {line:,}", f"a record ({QUOTING})", str(reason))
                return
            if record is None:
                return
            if record:
                yield line, record
            line = reader.line_num + 1
    finally:
        csv.field_size_limit(before)
