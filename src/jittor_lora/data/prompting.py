"""How examples become texts: what training, evaluation and generation have to agree on."""

from __future__ import annotations

from dataclasses import dataclass

from jittor_lora.data.chat_template import ChatTemplate
from jittor_lora.data.template import Template


@dataclass(frozen=True)
class Prompting:
    """
    Attributes:
        template: of questions about a context.
        chat: the template of conversations; None if there is none.
        special_tokens: "text" or "token": how their spellings in texts are read.
        conversations: whether an adapter learnt conversations, so that a prompt to it is a user's turn.
    """

    template: Template = Template()
    chat: ChatTemplate | None = None
    special_tokens: str = "text"
    conversations: bool = False
