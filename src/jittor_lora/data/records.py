"""The JSON values of a file of records: one per line, consecutive values over several lines, or an array."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from jittor_lora.data.text_file import Offenders, parse_json

_BLANKS = re.compile(r"\s*")
_CONVERSATIONS = ("These are conversations, which are not supported yet: write each answer as a completion, and "
                  "everything before it, in the model's chat template, as the prompt (with --special-tokens token).")
# Common formats that are not read, by one of their keys, and what to do.
_OTHER_FORMS = {
    "messages": _CONVERSATIONS,
    "conversations": _CONVERSATIONS,
    "instruction": "These are instructions as in Alpaca: write the instruction with its input as the prompt, the "
                   "output as the completion.",
    "text": "These are whole texts: write the given part as the prompt, the part to learn as the completion.",
}


def records(text: str, offenders: Offenders) -> Iterator[tuple[str, Any]]:
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
    """The number in "line 1,234": the id of a record without one."""
    return place.rpartition(" ")[2].replace(",", "")


def advice(value: Any, usual: str) -> str:
    """What to do about malformed records like this one; `usual` if its format is unknown."""
    keys = value if isinstance(value, dict) else ()
    return next((text for key, text in _OTHER_FORMS.items() if key in keys), usual)


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
