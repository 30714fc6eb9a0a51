"""Conversations as OpenAI's `messages`, and as TRL's prompt and completion with lists of messages."""

from __future__ import annotations

import os
from typing import Any

from jittor_lora.data.conversations import ASSISTANT, ConversationData, Turn
from jittor_lora.data.records import Source
from jittor_lora.data.text_file import MISSING, Offenders
from jittor_lora.data.turns import Placed, in_order, read_conversations, read_turns, system_first

EXAMPLE = '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}'
SPLIT_EXAMPLE = '{"prompt": [{"role": "user", "content": "…"}], "completion": [{"role": "assistant", "content": "…"}]}'


def is_messages(row: dict[str, Any]) -> bool:
    return "messages" in row


def is_split(row: dict[str, Any]) -> bool:
    return isinstance(row.get("prompt"), list) or isinstance(row.get("completion"), list)


def parse_messages(source: Source, path: str | os.PathLike, purpose: str = "training") -> ConversationData:
    """Rows with `messages`; the `weight` of an assistant's turn, 0 or 1, says whether it is learnt.

    Raises:
        UserError: see `read_conversations`.
    """
    return read_conversations(source, path, purpose, "messages", _whole, EXAMPLE)


def parse_split(source: Source, path: str | os.PathLike, purpose: str = "training") -> ConversationData:
    """Rows with `prompt` and `completion`, both lists of messages; only those of the completion are learnt.

    Raises:
        UserError: see `read_conversations`.
    """
    def turns(row: dict[str, Any], place: str, offenders: Offenders) -> list[Placed] | None:
        prompt = read_turns(row.get("prompt", MISSING), f"{place}, prompt", offenders, scored=False)
        if purpose == "prompts" and row.get("completion") in (None, []):
            return system_first(row, place, offenders, prompt)
        completion = read_turns(row.get("completion", MISSING), f"{place}, completion", offenders)
        if prompt is None or completion is None:
            return None
        if completion[0][1].role != ASSISTANT:
            offenders.add(completion[0][0], "a turn of the assistant", completion[0][1].role)
            return None
        return system_first(row, place, offenders, prompt + completion)

    return read_conversations(source, path, purpose, "messages", turns, SPLIT_EXAMPLE)


def _whole(row: dict[str, Any], place: str, offenders: Offenders) -> list[Placed] | None:
    turns = read_turns(row.get("messages", MISSING), f"{place}, messages", offenders)
    return system_first(row, place, offenders, turns)


def conversation_to_answer(row: dict[str, Any], place: str = "", offenders: Offenders | None = None
                           ) -> tuple[Turn, ...]:
    """The turns of a row with `messages` up to the last of a user; empty, with an offender, if they cannot be read."""
    offenders = offenders or Offenders(place)
    placed = _whole(row, place, offenders)
    if placed is None or not in_order(placed, place, offenders):
        return ()
    turns = [turn for _, turn in placed]
    if turns[-1].role == ASSISTANT:
        turns.pop()
    if not turns:
        offenders.add(place, "a turn of the user", MISSING)
    return tuple(turns)
