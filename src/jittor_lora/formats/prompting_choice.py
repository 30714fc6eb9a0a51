"""How examples become texts: as chosen, else as an adapter's training did it, else with the base's chat template."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from jittor_lora.data.chat_encoding import ChatEncoder
from jittor_lora.data.chat_template import ChatTemplate
from jittor_lora.data.conversations import ConversationData
from jittor_lora.data.examples import Data
from jittor_lora.data.named_templates import NAMED
from jittor_lora.data.prompting import Choices, Prompting
from jittor_lora.data.template import Template
from jittor_lora.errors import UserError
from jittor_lora.formats.bases import ResolvedBase
from jittor_lora.formats.chat_template import base_chat_template, chosen_chat_template
from jittor_lora.formats.prompting import read_prompting
from jittor_lora.formats.tokenizer import Tokenizer


def base_prompting(base: ResolvedBase, tokenizer: Tokenizer) -> Prompting:
    """That of a base alone: as its folder records it, else the default with the base's own chat template.

    Raises:
        UserError: the base's files hold a record or a chat template that cannot be read.
    """
    recorded = read_prompting(base.path, tokenizer) if base.kind == "folder" else None
    return recorded or Prompting(chat=base_chat_template(base.path, tokenizer))


def chosen_prompting(own: Prompting, tokenizer: Tokenizer, choices: Choices, date: str | None = None) -> Prompting:
    """`own`, unless something else is chosen; the tokenizer is set to it.

    Args:
        date: what the chat template shows as today, in ISO's form.

    Raises:
        UserError: a template is missing or not valid.
    """
    chat, arguments = own.chat, choices.chat_arguments
    if choices.chat_template is not None:
        chat = chosen_chat_template(choices.chat_template, tokenizer)
    if chat is not None and (arguments or date is not None):
        now = chat.now if date is None else datetime.fromisoformat(date)
        chat = ChatTemplate(chat.source, chat.origin, chat.tokens, {**chat.arguments, **(arguments or {})}, now)
    tokenizer.special_tokens = choices.special_tokens or own.special_tokens
    return replace(own, chat=chat, template=own.template if choices.template is None else Template(choices.template),
                   special_tokens=tokenizer.special_tokens)


def encoder_of(prompting: Prompting, tokenizer: Tokenizer, data: Data | None, base: str) -> ChatEncoder | None:
    """What encodes conversations; None for `data` that holds none.

    Args:
        base: the base's name, for the message.

    Raises:
        UserError: there is no chat template.
    """
    if data is not None and not isinstance(data, ConversationData):
        return None
    if prompting.chat is None:
        why = f"{data.path} holds conversations, but " if data else ""
        raise UserError(f"{why}{base} has no chat template. Name one with --chat-template: a .jinja file, or one of "
                        f"{', '.join(NAMED)}.")
    return ChatEncoder(tokenizer, prompting.chat)

