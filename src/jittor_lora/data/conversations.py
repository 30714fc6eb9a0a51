"""Conversations: the turns of a system, a user and an assistant, whatever format their file has."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace

SYSTEM, USER, ASSISTANT = ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Turn:
    """What one role says.

    Attributes:
        role: one of `ROLES`.
        text: may be empty for a system, not otherwise.
        scored: whether training learns it, which only applies to an assistant's turn (OpenAI's `weight`).
    """

    role: str
    text: str
    scored: bool = True


@dataclass(frozen=True)
class Conversation:
    """Turns in order: at most one of a system, at the start, then a user and an assistant in alternation.

    `id` is the row's `id`, or its number in the file.
    """

    id: str
    turns: tuple[Turn, ...]

    @property
    def question(self) -> tuple[Turn, ...]:
        """The turns before the last of the assistant: what there is to answer; all of them if a user has the last."""
        return self.turns[:-1] if self.turns[-1].role == ASSISTANT else self.turns


@dataclass(frozen=True)
class ConversationData:
    """The conversations of one file.

    Attributes:
        path: of the file.
        conversations: in the file's order.
        format: its format as recognised, for messages: "messages", "Alpaca", "ShareGPT".
        unanswered: the number of conversations whose last turn, a user's, is left out as no answer follows it.
    """

    path: str
    conversations: tuple[Conversation, ...]
    format: str = "messages"
    unanswered: int = 0

    def __len__(self) -> int:
        return len(self.conversations)

    def subset(self, count: int, seed: int) -> ConversationData:
        """`count` conversations (all if there are fewer), in the file's order."""
        from jittor_lora.data.subset import choose  # brings numpy
        kept = choose([[1]] * len(self), count, seed)
        chosen = tuple(self.conversations[i] for i, _ in sorted(kept))
        return replace(self, conversations=chosen)

    def only(self, ids: Container[str]) -> ConversationData:
        """The conversations with these ids."""
        return replace(self, conversations=tuple(c for c in self.conversations if c.id in ids))

    def places(self) -> dict[str, tuple[str, ...]]:
        """Id -> (): conversations belong to no article or paragraph."""
        return {conversation.id: () for conversation in self.conversations}

    def references(self) -> dict[str, list[str]]:
        """Id -> the last turn of the assistant, without surrounding whitespace; only of those that end with one."""
        return {c.id: [c.turns[-1].text.strip()] for c in self.conversations if c.turns[-1].role == ASSISTANT}
