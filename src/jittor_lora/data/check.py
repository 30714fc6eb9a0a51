"""What cannot work, found before training: `train` refuses it, `inspect` shows it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jittor_lora.data.chat_faults import fault_lines
from jittor_lora.data.conversations import ConversationData
from jittor_lora.data.examples import Data
from jittor_lora.data.length_report import LengthReport
from jittor_lora.data.special_tokens import special_token_lines, texts_of
from jittor_lora.errors import UserError

_SHOWN = 5


def obstacles(data: Data, report: LengthReport, special: Sequence[str], meaning: str) -> list[str]:
    """Sentences on what makes training on this data futile; none if it can begin.

    Args:
        report: of its examples.
        special: spellings of the tokenizer's special tokens.
        meaning: how they are read in texts: "text" or "token" if the user said so, else "unknown".
    """
    found = fault_lines(fault for fault in report.faults if fault.blocks)
    if meaning == "unknown":
        found += special_token_lines(texts_of(data), special, meaning)
    return found


def notes(data: Data, report: LengthReport, special: Sequence[str], meaning: str) -> list[str]:
    """Sentences on what is worth knowing, but no obstacle."""
    found = fault_lines(fault for fault in report.faults if not fault.blocks)
    if meaning != "unknown":
        found += special_token_lines(texts_of(data), special, meaning)
    return found


def duplicates(data: Data) -> list[str]:
    """A sentence on conversations that occur more than once; none for other data, where equal prompts are merged."""
    if not isinstance(data, ConversationData):
        return []
    first: dict[tuple, str] = {}
    repeated = [(c.id, first[c.turns]) for c in data.conversations if first.setdefault(c.turns, c.id) != c.id]
    if not repeated:
        return []
    shown = ", ".join(f"{one} (as {other})" for one, other in repeated[:_SHOWN])
    more = f" and {len(repeated) - _SHOWN:,} more" if len(repeated) > _SHOWN else ""
    return [f"{len(repeated):,} of {len(data):,} conversations are repeated: {shown}{more}. They count as often as "
            "they occur."]


def refuse_obstacles(lines: Iterable[tuple[str, Sequence[str]]]) -> None:
    """
    Args:
        lines: (file, its obstacles).

    Raises:
        UserError: there are any; all are listed.
    """
    found = [f"{path}: {line}" for path, some in lines for line in some]
    if found:
        raise UserError("\n".join(found) + "\nNothing was trained; `jittor-lora inspect` shows the examples.")
