"""Reads conversations from rows: roles and texts under the names that people use, and their order.

The order is the one that every chat template accepts: at most one system at the start, then user and assistant in
alternation. Two turns of one role in a row are refused: Mistral's and Gemma's templates raise on them, LLaMA-Factory
drops the conversation, TRL passes them on, and those who join them do not agree on what goes in between.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from jittor_lora.data.conversations import ASSISTANT, SYSTEM, USER, Conversation, ConversationData, Turn
from jittor_lora.data.records import Ids, Source, records
from jittor_lora.data.text_file import MISSING, Offenders, is_text
from jittor_lora.errors import UserError

ROLES = {"system": SYSTEM, "developer": SYSTEM, "user": USER, "human": USER, "prompter": USER,
         **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot"), ASSISTANT)}
_TOOL_ROLES = ("tool", "function", "function_call", "function_response", "tool_call", "tool_response", "observation",
               "ipython")
TOOLS, MEDIA = ("tools", "functions"), ("images", "image", "videos", "audios")
_CALLS = ("tool_calls", "function_call", "reasoning_content")
SUPPORTED = ("A conversation has at most one turn of the system, at the start, then texts of user and assistant in "
             "alternation; tools, functions, images and audio are not supported.")

Placed = tuple[str, Turn]  # a turn with its place in the file


def read_conversations(source: Source, path: str | os.PathLike, purpose: str, name: str,
                       turns_of: Callable[[dict, str, Offenders], list[Placed] | None],
                       example: str) -> ConversationData:
    """The conversations of a file's rows.

    Args:
        purpose: for "training" and "evaluation" a conversation needs a turn of the assistant, and what a user says
            after the last one is left out; for "prompts" a user may have the last word.
        name: of the format.
        turns_of: the turns of a row at a place; None if they cannot be read, which it reports to the offenders.
        example: a row, for messages.

    Raises:
        UserError: rows are malformed, with all places listed, or there are none.
    """
    offenders, ids = Offenders(path), Ids()
    found, unanswered = [], 0
    for place, row in records(source, offenders):
        if not isinstance(row, dict):
            offenders.add(place, f"an object like {example}", row)
            continue
        known = ids.take(row, place, offenders)
        placed = turns_of(row, place, offenders) if _is_plain(row, place, offenders) else None
        if placed is None or not in_order(placed, place, offenders):
            continue
        turns = [turn for _, turn in placed]
        if purpose != "prompts":
            if turns[-1].role == USER:
                unanswered += 1
                turns.pop()
            if not any(turn.role == ASSISTANT for turn in turns):
                offenders.add(place, "a turn of the assistant", MISSING)
            elif purpose == "training" and not any(turn.role == ASSISTANT and turn.scored for turn in turns):
                offenders.add(place, "a turn of the assistant with weight 1, to learn", 0)
        if known is not None and not offenders.count:
            found.append(Conversation(known, tuple(turns)))
    offenders.check(f"{SUPPORTED} Each row is like {example}.")
    if not found:
        raise UserError(f"{path}: no conversations in it.")
    return ConversationData(str(path), tuple(found), name, unanswered)


def read_turns(values: Any, where: str, offenders: Offenders, scored: bool = True) -> list[Placed] | None:
    """The turns in a list of objects with `role` and `content`, or `from` and `value`; None if one cannot be read."""
    if not isinstance(values, list) or not values:
        offenders.add(where, "a list of turns", values)
        return None
    before = offenders.count
    turns = [(f"{where}[{i}]", _turn(value, f"{where}[{i}]", offenders, scored)) for i, value in enumerate(values)]
    return None if offenders.count > before else turns


def text_of(value: Any, where: str, offenders: Offenders, may_be_empty: bool = False) -> str:
    """A text, or the texts in OpenAI's list of parts, joined."""
    if isinstance(value, list):
        parts = list(value)
        for i, part in enumerate(parts):
            kind = part.get("type", MISSING) if isinstance(part, dict) else part
            if kind != "text":
                offenders.add(f"{where}[{i}]", 'a part {"type": "text", "text": "…"}', kind)
                return ""
            if not is_text(part.get("text")):
                offenders.add(f"{where}[{i}].text", "a text", part.get("text", MISSING))
                return ""
        value = "".join(part["text"] for part in parts)
    if not is_text(value) or not (value.strip() or may_be_empty):
        offenders.add(where, "a text" if may_be_empty else "a text that is not empty", value)
        return ""
    return value


def system_first(row: dict, place: str, offenders: Offenders, turns: list[Placed] | None) -> list[Placed] | None:
    """The turns with the row's own `system`, if it has one that is not empty, before them."""
    value = row.get("system")
    if turns is None or value in (None, ""):
        return turns
    if turns and turns[0][1].role == SYSTEM:
        offenders.add(f"{place}, system", "one text for the system: this one or that of the first turn", value)
        return None
    return [(f"{place}, system", Turn(SYSTEM, text_of(value, f"{place}, system", offenders, True))), *turns]


def _turn(value: Any, where: str, offenders: Offenders, scored: bool) -> Turn | None:
    if not isinstance(value, dict):
        offenders.add(where, "a turn, an object with role and content", value)
        return None
    given = {key: held for key, held in value.items() if held is not None}
    named = given.get("role", given.get("from", MISSING))
    role = ROLES.get(named.strip().lower()) if isinstance(named, str) else None
    calls = next((key for key in _CALLS if given.get(key)), None)
    if role is None:
        tool = isinstance(named, str) and named.strip().lower() in _TOOL_ROLES
        offenders.add(f"{where}.role", "system, user or assistant" if tool else
                      "system, user or assistant (--columns role.user=… says what a file calls them)", named)
    elif calls:
        offenders.add(f"{where}.{calls}", "nothing: write what the assistant says, its reasoning too, into its text",
                      given[calls])
    else:
        key = next((key for key in ("content", "value") if key in given), "content")
        text = text_of(given.get(key, MISSING), f"{where}.{key}", offenders, may_be_empty=role == SYSTEM)
        weight = given.get("weight", 1)
        if role == ASSISTANT and not (isinstance(weight, (int, float)) and weight in (0, 1)):
            offenders.add(f"{where}.weight", "0 or 1", weight)
        return Turn(role, text, scored and (role != ASSISTANT or weight == 1))
    return None


def _is_plain(row: dict, place: str, offenders: Offenders) -> bool:
    """Whether a row has no tools, images or the like."""
    more = next((key for key in (*TOOLS, *MEDIA) if row.get(key)), None)
    if more:
        offenders.add(f"{place}, {more}", "nothing", row[more])
    return not more


def in_order(placed: list[Placed], place: str, offenders: Offenders) -> bool:
    """Whether these turns are in the order that chat templates accept; what is not is reported to the offenders."""
    if len(placed) == 1 and placed[0][1].role == SYSTEM:
        offenders.add(place, "a turn of the user", "system")
        return False
    for (where, turn), role in zip(placed, _alternating(placed[0][1].role == SYSTEM)):
        if turn.role != role:
            offenders.add(where, f"a turn of the {role}", turn.role)
            return False
    return True


def _alternating(system: bool) -> Iterator[str]:
    if system:
        yield SYSTEM
    while True:
        yield USER
        yield ASSISTANT
