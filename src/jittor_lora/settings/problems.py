"""What is wrong with settings, in words: one message that lists every problem."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

SHOWN_PROBLEMS = 20  # what fits on one screen


class Problem(NamedTuple):
    """One reason to refuse the settings.

    Attributes:
        fields: those it is about; the first is named to the user.
        text: why.
    """

    fields: tuple[str, ...]
    text: str


def report(problems: Sequence[Problem], origins: Mapping[str, str]) -> str:
    """The message that lists `problems`, with the origin of each value where it is known."""
    lines = ["1 setting cannot be used:" if len(problems) == 1 else f"{len(problems)} settings cannot be used:"]
    for problem in problems[:SHOWN_PROBLEMS]:
        name = problem.fields[0]
        where = f" ({origins[name]})" if origins.get(name) else ""
        lines.append(f"  {_shortened(name)}{where}: {problem.text}")
    if len(problems) > SHOWN_PROBLEMS:
        lines.append(f"  and {len(problems) - SHOWN_PROBLEMS} more")
    return "\n".join(lines)


def expectation(field: Any) -> str:
    """The values that `field`, one of pydantic's, accepts, in words: "a whole number of at least 1, or none"."""
    words = (field.json_schema_extra or {}).get("expected")
    if words is None:
        members = get_args(field.annotation) if get_origin(field.annotation) is Union else (field.annotation,)
        kind = next(member for member in members if member is not type(None))
        if get_origin(kind) is Literal:
            words = "one of " + ", ".join(get_args(kind))
        else:
            words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]
            words += _limits(field)
    return words + (", or none" if type(None) in get_args(field.annotation) else "")


def _limits(field: Any) -> str:
    limits = {name: getattr(item, name) for item in field.metadata for name in ("ge", "gt", "le", "lt", "min_length")
              if getattr(item, name, None) is not None}
    if "min_length" in limits:
        return " that is not empty"
    if limits.keys() >= {"ge", "le"} or limits.keys() >= {"ge", "lt"}:
        return f" from {limits['ge']} to " + (f"{limits['le']}" if "le" in limits else f"below {limits['lt']}")
    words = {"ge": "of at least", "gt": "above", "le": "at most", "lt": "below"}
    parts = [f"{words[name]} {limits[name]}" for name in words if name in limits]
    return f" {' and '.join(parts)}" if parts else ""


def shown(value: Any) -> str:
    """`value` for a message."""
    return _shortened(json.dumps(value, ensure_ascii=True, default=repr))


def _shortened(text: str, most: int = 80) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
