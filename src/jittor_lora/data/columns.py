"""`--columns`: what a file calls the fields, and the roles, that the formats name otherwise."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from jittor_lora.data.text_file import is_text
from jittor_lora.errors import UserError

# Fields of a row, of a turn within it, and values of a turn's role.
ROW = ("prompt", "completion", "messages", "instruction", "input", "output", "history", "system", "context", "question",
       "answers", "answer", "answer_start", "title", "id")
TURN = ("role", "content", "weight")
ROLE_VALUES = ("role.system", "role.user", "role.assistant")
NAMES = (*ROW, *TURN, *ROLE_VALUES)
TURN_LISTS = ("messages", "conversations", "conversation", "prompt", "completion")  # fields that may hold turns
_ELSEWHERE = {"from": "role", "value": "content", "conversations": "messages", "user": "role.user",
              "assistant": "role.assistant", "query": "input", "response": "output"}


def read_columns(text: str) -> dict[str, str]:
    """The mapping that `messages=dialog,role=speaker` stands for."""
    pairs = [part.partition("=") for part in text.split(",")]
    return {name.strip(): field.strip() for name, _, field in pairs}


def wrong_columns(columns: Mapping[str, str]) -> str | None:
    """What is wrong with a mapping of our names to a file's fields; None if nothing is."""
    for name, field in columns.items():
        if name not in NAMES:
            return f"{name!r} is none of the names: {', '.join(NAMES)}{_meant(name, NAMES)}"
        if not is_text(field) or not field or not field.isprintable():
            return f"{name}: expected the file's field, as in {name}=FIELD, found {field!r}"
    for level in (ROW, TURN, ROLE_VALUES):
        fields = [columns[name] for name in level if name in columns]
        twice = next((field for field in fields if fields.count(field) > 1), None)
        if twice is not None:
            return f"the field {twice!r} is given twice"
    return None


class Columns:
    """A mapping of our names to a file's fields, applied to its rows.

    Args:
        columns: as `wrong_columns` accepts it; empty for a file whose fields have our names.
    """

    def __init__(self, columns: Mapping[str, str] | None = None):
        self.names = dict(columns or {})
        self._row = {name: self.names[name] for name in ROW if name in self.names}
        self._turn = {name: self.names[name] for name in TURN if name in self.names}
        self._roles = {self.names[name]: name.partition(".")[2] for name in ROLE_VALUES if name in self.names}

    def __bool__(self) -> bool:
        return bool(self.names)

    def __str__(self) -> str:
        return ",".join(f"{name}={field}" for name, field in self.names.items())

    @property
    def fields(self) -> frozenset[str]:
        """The file's fields that a row's names are mapped to."""
        return frozenset(self._row.values())

    def row(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row of the file with our names."""
        if not self.names:
            return row
        taken = {*self._row, *self._row.values()}
        renamed = {key: value for key, value in row.items() if key not in taken}
        renamed.update((name, row[field]) for name, field in self._row.items() if field in row)
        if self._turn or self._roles:
            for key in TURN_LISTS:
                if isinstance(renamed.get(key), list):
                    renamed[key] = [self._turned(turn) for turn in renamed[key]]
        return renamed

    def _turned(self, turn: Any) -> Any:
        if not isinstance(turn, dict):
            return turn
        taken = {*self._turn, *self._turn.values()}
        renamed = {key: value for key, value in turn.items() if key not in taken}
        renamed.update((name, turn[field]) for name, field in self._turn.items() if field in turn)
        role = renamed.get("role", renamed.get("from"))
        if isinstance(role, str) and role in self._roles:
            renamed["role"] = self._roles[role]
        return renamed

    def check(self, path: str, rows: Iterable[dict[str, Any]], header: Iterable[str] = ()) -> None:
        """Compare with the first rows of a file, with their turns already read where they are JSON in a text.

        Args:
            header: further fields of the file.

        Raises:
            UserError: no row has a field, or no turn; all are listed with what there is.
        """
        if not self.names:
            return
        rows = list(rows)
        found = dict.fromkeys([*header, *(key for row in rows for key in row)])
        lists = {self._row.get("messages", "messages"), self._row.get("prompt", "prompt"),
                 self._row.get("completion", "completion"), *TURN_LISTS}
        turns = dict.fromkeys(key for row in rows for name in lists if isinstance(row.get(name), list)
                              for turn in row[name] if isinstance(turn, dict) for key in turn)
        wrong = [f"  {name}={field}: no such field{_meant(field, found)}"
                 for name, field in self._row.items() if field not in found]
        wrong += [f"  {name}={field}: no turn has such a field{_meant(field, turns)}"
                  for name, field in self._turn.items() if field not in turns and not (wrong and not turns)]
        if wrong:
            lines = [f"{path}: --columns names fields that it does not have:", *wrong, f"Its fields: {listed(found)}."]
            lines += [f"Those of its turns: {listed(turns)}."] if turns else []
            raise UserError("\n".join(lines))


def listed(fields: Iterable[str], most: int = 30) -> str:
    """Names of fields for a message."""
    fields = [re.sub(r"\s+", " ", field[:40]) for field in map(str, fields)]
    return ", ".join(fields[:most]) + (f" and {len(fields) - most} more" if len(fields) > most else "")


def _meant(name: str, known: Iterable[str]) -> str:
    known = {other.lower(): other for other in known}
    elsewhere = _ELSEWHERE.get(name.lower())
    near = [elsewhere] if elsewhere in known else difflib.get_close_matches(name.lower(), known, n=1)
    return f"; did you mean {known[near[0]]}?" if near else ""
