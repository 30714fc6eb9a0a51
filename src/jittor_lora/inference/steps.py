"""One step of decoding: everything that is being read advances together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Hashable, Protocol

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
    kinds: dict[tuple[Hashable, str], list[tuple[Work, Turn]]] = {}
    for work in works:
        unread = work.unread
        if unread and room <= 0:
            continue
        turn, wanted = work.turn(room)
        room -= unread - work.unread
        kinds.setdefault((work.reader.base, wanted), []).append((work, turn))
    for (_, wanted), several in kinds.items():  # all turns of a base in one call, those of an adapter beside each other
        several.sort(key=lambda pair: id(pair[0].reader))
        results = iter(_read(several[0][0].reader, wanted, [turn for _, turn in several]))
        for work, _ in several:
            work.take(results)
    return room


def _read(reader: Reader, wanted: str, turns: Sequence[Turn]) -> Sequence[Any]:
    if wanted == EVERY_ROW:
        return [reader.every_row(turn.group, turn.prefix) for turn in turns]
    return (reader.logits if wanted == LOGITS else reader.likeliest)(turns)
