"""The JSON values of a file of records: one per line, consecutive values over several lines, or an array."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Protocol, Union

from jittor_lora.data.text_file import Offenders, is_text, parse_json

_BLANKS = re.compile(r"\s*")


class RecordReader(Protocol):
    """Records that are not, or not only, JSON in a text."""

    def records(self, offenders: Offenders) -> Iterator[tuple[str, Any]]: ...


Source = Union[str, RecordReader]


class Ids:
    """The ids of a file's rows, each used once."""

    def __init__(self):
        self._places: dict[str, str] = {}

    def take(self, row: dict, place: str, offenders: Offenders) -> str | None:
        """The row's `id`, or the number in its place; None, with an offender, if it is no text or was used before."""
        name = row.get("id", number_in(place))
        name = str(name) if type(name) is int else name
        if not is_text(name):
            offenders.add(f"{place}, id", "a text or a whole number", name)
        elif name in self._places:
            offenders.add(f"{place}, id", f"an id not used before (it is in {self._places[name]})", name)
        else:
            self._places[name] = place
            return name
        return None


def records(source: Source, offenders: Offenders) -> Iterator[tuple[str, Any]]:
    """(place, value) of each record of a JSON text or another source; what cannot be read is added to `offenders`."""
    return json_records(source, offenders) if isinstance(source, str) else source.records(offenders)


def json_records(text: str, offenders: Offenders) -> Iterator[tuple[str, Any]]:
    """(place, value) of each record; anything that is not JSON is added to `offenders`."""
    start = text.lstrip()
    line, _, more = start.partition("\n")
    whole_line = _is_json(line)
    if start.startswith("[") and not (whole_line and more.strip()):
        try:
            values = parse_json(text)
        except ValueError as error:
            offenders.add("the whole file", f"a JSON array ({error})", start[:60])
            return
        yield from ((f"item {number:,}", value) for number, value in enumerate(values, 1))
    elif start.startswith("{") and not whole_line and first_value(start) is not None:
        yield from _consecutive(text, offenders)
    else:
        # Not splitlines: a JSON string may contain U+2028 and the like.
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    yield f"line {number:,}", parse_json(line)
                except ValueError as error:
                    offenders.add(f"line {number:,}", f"a JSON object ({error})", line)


def first_value(text: str, start: int = 0) -> tuple[Any, int] | None:
    """The JSON value that starts at `start` of a text, and its end; None if there is none."""
    try:
        return json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return None


def number_in(place: str) -> str:
    """The number in "line 1,234", or both in "file 2, line 7" with a slash: the id of a record without one."""
    return "/".join(number.replace(",", "") for number in re.findall(r"\d[\d,]*", place))


def _consecutive(text: str, offenders: Offenders) -> Iterator[tuple[str, Any]]:
    line, at = 1, 0
    while True:
        start = _BLANKS.match(text, at).end()
        line += text.count("\n", at, start)
        if start == len(text):
            return
        found = first_value(text, start)
        end = len(text) if found is None else found[1]
        try:
            yield f"line {line:,}", parse_json(text[start:end])
        except ValueError as error:
            offenders.add(f"line {line:,}", f"a JSON object ({error})", text[start : start + 60])
            if found is None:
                return
        line, at = line + text.count("\n", start, end), end


def _is_json(line: str) -> bool:
    try:
        parse_json(line)
    except ValueError:
        return False
    return True
