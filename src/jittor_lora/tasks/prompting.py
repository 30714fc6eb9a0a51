"""What training, evaluation and generation put examples into: as chosen, else as the adapter's training did."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any, Mapping

from jittor_lora.data.chat_encoding import ChatEncoder
from jittor_lora.data.chat_template import ChatTemplate
from jittor_lora.data.conversations import ConversationData
from jittor_lora.data.examples import Data
from jittor_lora.data.named_templates import NAMED
from jittor_lora.data.prompting import Prompting
from jittor_lora.data.template import Template
from jittor_lora.errors import UserError
from jittor_lora.formats.chat_template import chosen_chat_template
from jittor_lora.session import Session


def prompting_of(session: Session, template: str | None = None, chat_template: str | None = None,
                 chat_arguments: Mapping[str, Any] | None = None, special_tokens: str | None = None,
                 date: str | None = None) -> Prompting:
    """The active adapter's prompting, or the base's, with what is chosen otherwise; the tokenizer is set to it.

    Args:
        template: of questions about a context.
        chat_template: a name or a file.
        chat_arguments: variables of the chat template.
        special_tokens: "text" or "token".
        date: what the chat template shows as today, in ISO's form.

    Raises:
        UserError: a template is missing or not valid.
    """
    found, chat = session.prompting, session.prompting.chat
    if chat_template is not None:
        chat = chosen_chat_template(chat_template, session.tokenizer, chat_arguments)
    elif chat_arguments and chat is not None:
        chat = ChatTemplate(chat.source, chat.origin, chat.tokens, {**chat.arguments, **chat_arguments}, chat.now)
    if date is not None and chat is not None:
        chat = ChatTemplate(chat.source, chat.origin, chat.tokens, chat.arguments, datetime.fromisoformat(date))
    found = replace(found, chat=chat, template=Template(template) if template else found.template,
                    special_tokens=special_tokens or found.special_tokens)
    session.tokenizer.special_tokens = found.special_tokens
    return found


def chat_encoder(session: Session, prompting: Prompting, data: Data | None = None) -> ChatEncoder | None:
    """What encodes conversations; None for data that holds none.

    Raises:
        UserError: there is no chat template.
    """
    if data is not None and not isinstance(data, ConversationData):
        return None
    if prompting.chat is None:
        what = f"{data.path} holds conversations, but {session.base.name}" if data else session.base.name
        raise UserError(f"{what} has no chat template. Name one with --chat-template: a .jinja file, or one of "
                        f"{', '.join(NAMED)}.")
    return ChatEncoder(session.tokenizer, prompting.chat)
