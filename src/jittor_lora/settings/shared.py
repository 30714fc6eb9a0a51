"""Settings that several verbs share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from jittor_lora.data.template import DEFAULT_TEMPLATE, Template
from jittor_lora.data.named_templates import NAMED
from jittor_lora.errors import UserError
from jittor_lora.settings.base import PATH, TEXT, setting

DATA = "Data"  # the group
LARGEST_SEED = 2**63 - 1
LINE_BREAKS = r"\n is a line break, \\ a backslash"  # in the help of texts


def _checked(text: str) -> str:
    try:
        Template(text)
    except UserError as error:
        raise ValueError(str(error)) from error
    return text


TemplateText = Annotated[str, AfterValidator(_checked)]
SpecialTokens = Literal["text", "token"]


def template_setting(group: str, description: str) -> Any:
    return setting(DEFAULT_TEMPLATE, group, f"{description}; {LINE_BREAKS}", holds=TEXT)


def special_tokens_setting(group: str) -> Any:
    return setting("text", group, "read a special token spelled out in the data, such as <|im_start|>, as plain text "
                   "or as the token")


def chat_template_setting(group: str, default: str) -> Any:
    """
    Args:
        default: whose template it is if none is given.
    """
    return setting(None, group, f"chat template of conversations: a .jinja file or one of {', '.join(NAMED)}; by "
                   f"default {default}", holds=PATH, min_length=1)


def chat_arguments_setting(group: str) -> Any:
    return setting(None, group, "values that the chat template asks for, such as enable_thinking=false")
