"""Conversations as examples: what an assistant says is learnt, in as many rows as the conversation has tokens."""

from __future__ import annotations

from collections.abc import Sequence

from jittor_lora.data.chat_encoding import Chat, ChatEncoder
from jittor_lora.data.chat_faults import Fault
from jittor_lora.data.conversations import SYSTEM, Conversation
from jittor_lora.data.encoding import common
from jittor_lora.data.groups import Branch, TokenGroup
from jittor_lora.data.length_report import LengthReport
from jittor_lora.errors import UserError


class ChatFitting:
    """Encodes conversations, fits them into the limit and keeps the report."""

    def __init__(self, encoder: ChatEncoder, report: LengthReport):
        self.encoder, self.report = encoder, report

    def learnt(self, conversation: Conversation) -> list[TokenGroup]:
        """One group, whose branches are the contexts in which the turns are learnt: usually a single one.

        Of a conversation that is too long the last turns are left out.
        """
        chats, faults = self.encoder.try_training(conversation)
        self.report.faults += faults
        if not chats:
            return []
        self._measure(conversation.id, max(chat.scored[-1][1] for chat in chats))
        fitting = [Chat(chat.ids, scored, chat.within_token) for chat in chats
                   for scored in [[(max(start, 1), end) for start, end in chat.scored if 1 < end <= self.report.limit]]
                   if scored]
        if sum(len(chat.scored) for chat in fitting) < sum(len(chat.scored) for chat in chats):
            if not fitting:
                self.report.dropped[conversation.id] = "its first answer ends beyond the limit"
                return []
            self.report.shortened.append(conversation.id)
        self.report.within_token += any(chat.within_token for chat in fitting)
        return [_group(conversation.id, fitting)]

    def asked(self, conversation: Conversation) -> list[TokenGroup]:
        """The conversation up to the last answer of the assistant, which is to be generated.

        Of a conversation that is too long the first exchanges are left out.
        """
        turns = list(conversation.question)
        first = 1 if turns[0].role == SYSTEM else 0
        try:
            ids = self.encoder.prompt(turns)
            self._measure(conversation.id, len(ids))
            while len(ids) > self.report.limit and len(turns) - first > 2:
                del turns[first : first + 2]
                ids = self.encoder.prompt(turns)
        except UserError as error:
            self.report.faults.append(Fault(conversation.id, "refused", str(error)))
            return []
        if len(ids) > self.report.limit:
            self.report.dropped[conversation.id] = "its last question alone is longer than the limit"
            return []
        if len(turns) < len(conversation.question):
            self.report.shortened.append(conversation.id)
        return [TokenGroup(ids[:-1], [Branch(conversation.id, ids[-1:], [])])]

    def _measure(self, name: str, tokens: int) -> None:
        self.report.examples += 1
        self.report.longest = max(self.report.longest, (tokens, name), key=lambda longest: longest[0])


def _group(name: str, chats: Sequence[Chat]) -> TokenGroup:
    """Several contexts share the tokens before what the first of them learns, as far as they are the same."""
    shared = min(chat.scored[0][0] for chat in chats)
    for chat in chats[1:]:
        shared = min(shared, common(chats[0].ids[:shared], chat.ids))
    shared = shared if len(chats) > 1 else 0
    return TokenGroup(chats[0].ids[:shared], [_branch(name, chat, shared) for chat in chats])


def _branch(name: str, chat: Chat, shared: int) -> Branch:
    first, last = chat.scored[0][0], chat.scored[-1][1]
    gaps = [(end - first, start - first) for (_, end), (start, _) in zip(chat.scored, chat.scored[1:]) if end < start]
    return Branch(name, chat.ids[shared:first], chat.ids[first:last], tuple(gaps))
