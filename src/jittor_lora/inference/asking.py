"""What people ask: a prompt to continue, a question about a context, or the next turn of a conversation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Union

from jittor_lora.data.conversations import SYSTEM, USER, Turn
from jittor_lora.inference.generator import Decoding, Generator, Group


@dataclass(frozen=True)
class Prompt:
    text: str


@dataclass(frozen=True)
class Question:
    context: str
    text: str


@dataclass(frozen=True)
class Talk:
    """A conversation, whose last turn is a user's."""

    turns: tuple[Turn, ...]

    @classmethod
    def opened(cls, text: str, system: str | None = None) -> Talk:
        """A user's first turn, after that of a system if there is one."""
        return cls((*((Turn(SYSTEM, system),) if system else ()), Turn(USER, text)))


Asked = Union[Prompt, Question, Talk]


def groups_of(generator: Generator, asked: Sequence[Asked]) -> list[Group]:
    """Token ids of what is asked, which is all of one kind.

    Raises:
        UserError: the chat template refuses a conversation.
    """
    if isinstance(asked[0], Talk):
        return generator.chats([one.turns for one in asked])
    return generator.groups([(one.context if isinstance(one, Question) else None, one.text) for one in asked])


def answers(generator: Generator, asked: Sequence[Asked], decoding: Decoding, count: int = 1,
            on_text: Callable[[int, str], None] = lambda index, text: None) -> list[list[str]]:
    """`count` answers to each; whitespace is dropped before answers that are not continuations, and after those to
    questions.

    Args:
        on_text: called as on_text(number, piece) when a piece becomes certain, if `count` is 1.

    Raises:
        UserError: as `groups_of`; a prompt is empty or too long for the model.
    """
    groups, trim = groups_of(generator, asked), not isinstance(asked[0], Prompt)
    if count == 1:
        found = [[text] for text in generator.continue_groups(groups, decoding, trim, on_text)]
    else:
        found = generator.continuations(groups, decoding, count, trim)
    return [[text.rstrip() for text in texts] for texts in found] if isinstance(asked[0], Question) else found
