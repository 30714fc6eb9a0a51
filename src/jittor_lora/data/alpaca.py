"""Stanford Alpaca's instructions, with LLaMA-Factory's `system` and `history`."""

from __future__ import annotations

import os
from typing import Any

from jittor_lora.data.conversations import ASSISTANT, USER, ConversationData, Turn
from jittor_lora.data.records import Source
from jittor_lora.data.text_file import MISSING, Offenders, is_text
from jittor_lora.data.turns import Placed, read_conversations, system_first, text_of

EXAMPLE = '{"instruction": "…", "input": "", "output": "…"}'
FIELDS = ("instruction", "input", "output", "system", "history")


def is_alpaca(row: dict[str, Any]) -> bool:
    return "instruction" in row and ("output" in row or row.keys() <= {*FIELDS, "id"})


def parse_alpaca(source: Source, path: str | os.PathLike, purpose: str = "training") -> ConversationData:
    """Rows with `instruction`, `output`, and optionally `input`, `system` and `history`, a list of earlier
    [question, answer] pairs, which are learnt too.

    The user says the instruction, then, on a new line, the input if there is one.

    Raises:
        UserError: see `read_conversations`.
    """
    def turns(row: dict[str, Any], place: str, offenders: Offenders) -> list[Placed] | None:
        before, found = offenders.count, _history(row, place, offenders)
        found.append((f"{place}, instruction", Turn(USER, _question(row, place, offenders))))
        output = row.get("output", MISSING)
        if not (purpose == "prompts" and output in (MISSING, None, "")):
            found.append((f"{place}, output", Turn(ASSISTANT, text_of(output, f"{place}, output", offenders))))
        found = system_first(row, place, offenders, found)
        return None if offenders.count > before else found

    return read_conversations(source, path, purpose, "Alpaca", turns, EXAMPLE)


def _question(row: dict[str, Any], place: str, offenders: Offenders) -> str:
    instruction, more = row.get("instruction", MISSING), row.get("input")
    if more not in (None, "") and not is_text(more):
        offenders.add(f"{place}, input", "a text", more)
        more = ""
    more = more if more and more.strip() else ""
    if more and instruction in (None, "", MISSING):
        return more
    text = text_of(instruction, f"{place}, instruction", offenders)
    return f"{text}\n{more}" if more else text


def _history(row: dict[str, Any], place: str, offenders: Offenders) -> list[Placed]:
    pairs, turns = row.get("history"), []
    if pairs in (None, ""):
        return turns
    if not isinstance(pairs, list):
        offenders.add(f"{place}, history", "a list of [question, answer]", pairs)
        return turns
    for i, pair in enumerate(pairs):
        at = f"{place}, history[{i}]"
        if not isinstance(pair, list) or len(pair) != 2:
            offenders.add(at, "[question, answer]", pair)
            continue
        turns += [(f"{at}[{j}]", Turn(role, text_of(text, f"{at}[{j}]", offenders)))
                  for j, (role, text) in enumerate(zip((USER, ASSISTANT), pair))]
    return turns
