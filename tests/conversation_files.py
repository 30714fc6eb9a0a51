"""Conversations written in every format and container that people have them in."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from jittor_lora.data.conversations import ASSISTANT, SYSTEM, USER, Turn

FROM = {SYSTEM: "system", USER: "human", ASSISTANT: "gpt"}


def turns(*texts: str, system: str | None = None) -> tuple[Turn, ...]:
    """Turns of a user and an assistant in alternation, after one of the system if given."""
    before = () if system is None else (Turn(SYSTEM, system),)
    return (*before, *(Turn((USER, ASSISTANT)[i % 2], text) for i, text in enumerate(texts)))


def message(turn: Turn) -> dict[str, Any]:
    return {"role": turn.role, "content": turn.text}


def messages(turns: Sequence[Turn]) -> dict[str, Any]:
    return {"messages": [message(turn) for turn in turns]}


def parts(turns: Sequence[Turn]) -> dict[str, Any]:
    """OpenAI's lists of parts, each text cut into two."""
    return {"messages": [{"role": turn.role, "content": [
        {"type": "text", "text": turn.text[:1]}, {"type": "text", "text": turn.text[1:]}]} for turn in turns]}


def sharegpt(turns: Sequence[Turn]) -> dict[str, Any]:
    return {"conversations": [{"from": FROM[turn.role], "value": turn.text} for turn in turns]}


def sharegpt_system(turns: Sequence[Turn]) -> dict[str, Any]:
    """With the system's text beside the turns, and `conversation` with roles."""
    system, rest = _split(turns)
    return {"system": system, "conversation": [message(turn) for turn in rest]}


def pairs(turns: Sequence[Turn]) -> dict[str, Any]:
    system, rest = _split(turns)
    found = [{"input": rest[i].text, "output": rest[i + 1].text} for i in range(0, len(rest), 2)]
    return {"conversation": [{"system": system, **found[0]}, *found[1:]]}


def alpaca(turns: Sequence[Turn]) -> dict[str, Any]:
    system, rest = _split(turns)
    history = [[rest[i].text, rest[i + 1].text] for i in range(0, len(rest) - 2, 2)]
    return {"instruction": rest[-2].text, "input": "", "output": rest[-1].text, "system": system, "history": history}


FORMATS = {"messages": messages, "parts": parts, "sharegpt": sharegpt, "system": sharegpt_system, "pairs": pairs,
           "alpaca": alpaca}


def _split(turns: Sequence[Turn]) -> tuple[str, Sequence[Turn]]:
    return (turns[0].text, turns[1:]) if turns[0].role == SYSTEM else ("", turns)


def lines(rows: Sequence[dict]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def array(rows: Sequence[dict]) -> bytes:
    return json.dumps(rows, indent=2).encode()


def side_by_side(rows: Sequence[dict]) -> bytes:
    return "".join(json.dumps(row, indent=1, ensure_ascii=False) for row in rows).encode()


def table(rows: Sequence[dict], delimiter: str = ",", ending: str = "\r\n", quoting: int = csv.QUOTE_MINIMAL) -> bytes:
    names = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter, lineterminator=ending, quoting=quoting)
    writer.writerow(names)
    for row in rows:
        cells = (row.get(name, "") for name in names)
        writer.writerow([cell if isinstance(cell, str) else json.dumps(cell) for cell in cells])
    return b"\xef\xbb\xbf" + stream.getvalue().encode()


def parquet(rows: Sequence[dict]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), stream)
    return stream.getvalue()


CONTAINERS = {"lines": lines, "array": array, "side by side": side_by_side, "csv": table,
              "tsv": lambda rows: table(rows, "\t"), "semicolons": lambda rows: table(rows, ";", "\n", csv.QUOTE_ALL)}
