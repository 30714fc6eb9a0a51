"""What is wrong with a conversation in a template, as data: for `inspect`, and for refusal before training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, Sequence

from jittor_lora.errors import UserError

_SHOWN = 5


@dataclass(frozen=True)
class Fault:
    """Something wrong with one conversation.

    Attributes:
        conversation: its id.
        kind: "refused" (by the template), "dropped", "repeated" (a turn), "end" (no token ends a turn), "unscored" (no
            turn to learn), "special" (a spelled-out special token that the template reads), "tokens" (the tokenizer
            refuses), "turns" (too many); "prompt" (a note: generation starts otherwise).
        sentence: what is wrong and what to do.
        blocks: whether training cannot work; a note does not block.
    """

    conversation: str
    kind: str
    sentence: str
    blocks: bool = True


class ChatFaults(UserError):
    """A conversation that cannot be trained.

    Attributes:
        faults: all that is wrong with it.
    """

    def __init__(self, faults: Sequence[Fault]):
        super().__init__("\n".join(fault_lines(faults)))
        self.faults = tuple(faults)


def fault_lines(faults: Iterable[Fault]) -> list[str]:
    """A line per sentence, with the number of conversations and the first of their ids."""
    ids: dict[str, dict[str, None]] = {}
    for fault in faults:
        ids.setdefault(fault.sentence, {})[fault.conversation] = None
    lines = []
    for sentence, found in ids.items():
        names = ", ".join(list(found)[:_SHOWN]) + (f" and {len(found) - _SHOWN:,} more" if len(found) > _SHOWN else "")
        noun = "conversation" if len(found) == 1 else f"{len(found):,} conversations:"
        lines.append(f"{noun} {names}: {sentence}")
    return lines
