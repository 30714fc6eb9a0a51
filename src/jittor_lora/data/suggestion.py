"""What to do about data that no format recognises: its fields, and the `--columns` that would probably do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from jittor_lora.data.columns import listed

# Names that data sets on the web have for ours, the likelier first.
_OTHER_NAMES = {
    "messages": ("messages", "dialog", "dialogue", "dialogs", "dialogues", "chat", "turns", "conv", "chat_history",
                 "对话"),
    "role": ("role", "from", "speaker", "author", "name", "sender", "user", "角色"),
    "content": ("content", "value", "text", "utterance", "message", "body", "内容"),
    "instruction": ("instruction",),
    "context": ("context", "passage", "paragraph", "article"),
    "question": ("question", "query"),
    "prompt": ("prompt", "query", "question", "input", "instruct", "source", "src", "mr", "ask", "q", "title",
               "问题", "输入", "问", "提问"),
    "completion": ("completion", "response", "answer", "output", "target", "tgt", "ref", "reference", "reply",
                   "summary", "chosen", "a", "回答", "答案", "输出", "答", "回复"),
    "input": ("input", "context"),
    "output": ("output", "response", "answer", "completion", "target", "输出", "回答"),
    "answer": ("answer", "response", "output"),
}
_COMBINATIONS = (("messages",), ("instruction", "output"), ("context", "question", "answer"), ("prompt", "completion"))
_FORMATS = """\
What is read: "messages" or "conversations" with turns; "instruction", "input", "output"; "prompt", "completion"; \
"context", "question", "answers"; the JSON of SQuAD, WebNLG and DART; E2E's lines. \
--columns OURS=THEIRS,… names the fields otherwise."""


def unknown_fields(path: str, rows: Sequence[dict[str, Any]], header: Iterable[str]) -> str:
    """The message about rows of an unknown format.

    Args:
        rows: the first ones, as the file has them.
        header: further fields of the file.
    """
    fields = list(dict.fromkeys([*header, *(key for row in rows for key in row)]))
    lines = [f"{path}: the format is not recognised. Its fields: {listed(fields) or 'none'}."]
    found = _columns(fields, rows)
    if {"chosen", "rejected"} <= set(fields):
        lines.append("These are preferences (chosen and rejected answers), which are not learnt from; the chosen "
                     "answer can be, as the completion.")
    if found:
        named = ",".join(f"{ours}={field}" for ours, field in found.items())
        lines.append(f"This would probably do: --columns {named}")
    elif "text" in fields:
        lines.append("These are whole texts: write the given part as the prompt, the part to learn as the completion.")
    return "\n".join([*lines, _FORMATS])


def _columns(fields: Sequence[str], rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Our names for the file's fields, empty if there is no telling."""
    plain = {field.strip().lower(): field for field in reversed(fields)}
    for names in _COMBINATIONS:
        found: dict[str, str] = {}
        for name in names:
            field = next((plain[other] for other in _OTHER_NAMES[name]
                          if other in plain and plain[other] not in found.values()), None)
            if field is not None:
                found[name] = field
        if len(found) < len(names) or (names != ("messages",)) != all(_are_texts(field, rows) for field in
                                                                      found.values()):
            continue
        if names == ("messages",):
            found.update(_turn_columns(rows, found["messages"]))
        elif "instruction" in found and plain.get("context"):
            found["input"] = plain["context"]
        return {name: field for name, field in found.items() if name != field}
    return {}


def _are_texts(field: str, rows: Sequence[dict[str, Any]]) -> bool:
    return all(isinstance(row.get(field, ""), str) for row in rows)


def _turn_columns(rows: Sequence[dict[str, Any]], field: str) -> dict[str, str]:
    """Our names for the fields of turns."""
    turns = next((row[field] for row in rows if isinstance(row.get(field), list) and row[field]), [])
    keys = {key.lower(): key for key in turns[0]} if turns and isinstance(turns[0], dict) else {}
    found = {name: next((keys[other] for other in _OTHER_NAMES[name] if other in keys), None)
             for name in ("role", "content")}
    return {name: key for name, key in found.items() if key not in (None, name, "from", "value")}
