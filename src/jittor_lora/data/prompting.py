"""How examples become texts and labels: what training, evaluation and generation have to agree on."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Mapping

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
        label_smoothing: share of each label that training spread over the vocabulary.
    """

    template: Template = Template()
    chat: ChatTemplate | None = None
    special_tokens: str = "text"
    conversations: bool = False
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class Choices:
    """What a user chooses instead of an adapter's or a base's prompting; None where nothing.

    Attributes:
        template: of questions about a context.
        chat_template: a name or a file.
        chat_arguments: variables of the chat template.
        special_tokens: "text" or "token".
    """

    template: str | None = None
    chat_template: str | None = None
    chat_arguments: Mapping[str, Any] | None = None
    special_tokens: str | None = None

    @classmethod
    def of(cls, settings: Any) -> Choices:
        """Those among settings that have fields of these names."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})
