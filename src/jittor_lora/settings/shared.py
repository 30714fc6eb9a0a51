"""Settings that several verbs share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from jittor_lora.data.template import DEFAULT_TEMPLATE, Template
from jittor_lora.errors import UserError
from jittor_lora.settings.base import TEXT, setting

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
Scoring = Literal["auto", "squad", "squad-v2", "cmrc"]


def template_setting(group: str, description: str) -> Any:
    return setting(DEFAULT_TEMPLATE, group, f"{description}; {LINE_BREAKS}", holds=TEXT)


def scoring_setting(group: str) -> Any:
    return setting("auto", group, "rule for exact match and F1: squad (v1.1, English), squad-v2 (with questions that "
                   "have no answer), cmrc (Chinese: CMRC 2018, DRCD); auto chooses by the data")


def special_tokens_setting(group: str) -> Any:
    return setting("text", group, "read a special token spelled out in the data, such as <|im_start|>, as plain text "
                   "or as the token")
