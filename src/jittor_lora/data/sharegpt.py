"""ShareGPT's conversations: `conversations` with `from` and `value`, and the forms that share its field."""

from __future__ import annotations

import os
from typing import Any

from jittor_lora.data.conversations import ASSISTANT, SYSTEM, USER, ConversationData, Turn
from jittor_lora.data.records import Source
from jittor_lora.data.text_file import MISSING, Offenders
from jittor_lora.data.turns import Placed, read_conversations, read_turns, system_first, text_of

EXAMPLE = '{"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}'
KEYS = ("conversations", "conversation")
# One object per question and answer, as XTuner's and Firefly's data have it.
_PAIRS = (("input", "output"), ("human", "assistant"))


def is_sharegpt(row: dict[str, Any]) -> bool:
    return any(key in row for key in KEYS)


def parse_sharegpt(source: Source, path: str | os.PathLike, purpose: str = "training") -> ConversationData:
    """Rows with `conversations` (or `conversation`), optionally with a `system` of the row; the turns are objects with
    `from` and `value`, with `role` and `content`, or pairs with `input` and `output` or `human` and `assistant`.

    Raises:
        UserError: see `read_conversations`.
    """
    return read_conversations(source, path, purpose, "ShareGPT", _turns, EXAMPLE)


def _turns(row: dict[str, Any], place: str, offenders: Offenders) -> list[Placed] | None:
    key = next((key for key in KEYS if key in row), KEYS[0])
    values, where = row.get(key, MISSING), f"{place}, {key}"
    first = values[0] if isinstance(values, list) and values else None
    names = next((pair for pair in _PAIRS if isinstance(first, dict) and pair[0] in first), None)
    if names is None:
        turns = read_turns(values, where, offenders)
    else:
        turns = _pairs(values, names, where, offenders)
    return system_first(row, place, offenders, turns)


def _pairs(values: list[Any], names: tuple[str, str], where: str, offenders: Offenders) -> list[Placed] | None:
    before, turns = offenders.count, []
    for i, value in enumerate(values):
        at = f"{where}[{i}]"
        if not isinstance(value, dict):
            offenders.add(at, f"an object with {' and '.join(names)}", value)
            continue
        if i == 0 and value.get("system"):
            turns.append((f"{at}.system", Turn(SYSTEM, text_of(value["system"], f"{at}.system", offenders))))
        for name, role in zip(names, (USER, ASSISTANT)):
            text = value.get(name, MISSING)
            # The last question may have no answer yet.
            if not (role == ASSISTANT and i == len(values) - 1 and text in (MISSING, None, "")):
                turns.append((f"{at}.{name}", Turn(role, text_of(text, f"{at}.{name}", offenders))))
    return None if offenders.count > before else turns
