"""One step of decoding: everything that is being read advances together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from jittor_lora.inference.reader import Reader, Turn

# What is asked after a turn: the likeliest next token of each branch, its logits (V,), or the logits (rows, V) after
# each row of the prefix.
TOKENS, LOGITS, EVERY_ROW = "tokens", "logits", "every row"


class Work(Protocol):
    """Something that reads texts step by step.

    Attributes:
        reader: reads its texts.
        prefix: that its texts share.
        group: of the reader, once open.
        rooms: rows of the cache for each of its branches.
        read: tokens of the prefix that have been read.
        unread: tokens of prompts that have not been read.
        advancing: texts that advance in a step.
        complete: there is nothing left to do.
        reads_all: it asks for the logits after every token of its prefix, which must be read for that.
    """

    reader: Reader
    prefix: Sequence[int]
    group: Any
    rooms: Sequence[int]
    read: int
    unread: int
    advancing: int
    complete: bool
    reads_all: bool

    def open(self, group: Any = None, read: int = 0) -> None:
        """Begin.

        Args:
            group: of the reader, with room for the prefix and these rooms, which has read the first `read` tokens of
                the prefix; a new one if None.
        """

    def turn(self, room: int) -> tuple[Turn, str]:
        """What to read next, at most about `room` tokens of prompts, and what is asked after it."""

    def take(self, results: Iterator[Any]) -> None:
        """Take the results of that turn from an iterator."""


def advance(works: Sequence[Work], room: int) -> int:
    """Read the next turn of each work; about `room` tokens of prompts in all, first come, first served.

    Returns: the room that is left.

    Raises:
        UserError: the model's numbers are not finite.
    """
    acting, kinds, turns = [], [], []
    for work in works:
        unread = work.unread
        if unread and room <= 0:
            continue
        turn, wanted = work.turn(room)
        room -= unread - work.unread
        acting.append(work)
        kinds.append((id(work.reader), wanted))
        turns.append(turn)
    results: dict[tuple[int, str], Iterator[Any]] = {}
    for work, kind in zip(acting, kinds):  # each reader takes all turns of a kind in one call
        if kind not in results:
            own = [turn for turn, other in zip(turns, kinds) if other == kind]
            results[kind] = iter(_read(work.reader, kind[1], own))
    for work, kind in zip(acting, kinds):
        work.take(results[kind])
    return room


def _read(reader: Reader, wanted: str, turns: Sequence[Turn]) -> Sequence[Any]:
    if wanted == EVERY_ROW:
        return [reader.every_row(turn.group, turn.prefix) for turn in turns]
    return (reader.logits if wanted == LOGITS else reader.likeliest)(turns)
