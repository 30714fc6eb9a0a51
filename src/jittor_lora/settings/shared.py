"""Settings that several verbs share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Dict, Literal, Optional

from pydantic import AfterValidator, BeforeValidator

from jittor_lora.data.columns import read_columns, wrong_columns
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


def _read(value: Any) -> Any:
    return read_columns(value) if isinstance(value, str) else value


def _named(columns: Optional[Mapping[str, str]]) -> Optional[Mapping[str, str]]:
    problem = columns is not None and wrong_columns(columns)
    if problem:
        raise ValueError(problem)
    return columns


Columns = Annotated[Optional[Dict[str, str]], BeforeValidator(_read), AfterValidator(_named)]
TemplateText = Annotated[str, AfterValidator(_checked)]
SpecialTokens = Literal["text", "token"]


def template_setting(group: str, description: str) -> Any:
    return setting(DEFAULT_TEMPLATE, group, f"{description}; {LINE_BREAKS}", holds=TEXT)


def columns_setting() -> Any:
    return setting(None, DATA, "what the data calls our fields, such as prompt=query,completion=answer or "
                   "messages=dialog,role=speaker,role.user=USER; by default our names",
                   expected="our names with the data's fields (prompt=query,completion=answer)")


def special_tokens_setting(group: str) -> Any:
    return setting("text", group, "read a special token spelled out in the data, such as <|im_start|>, as plain text "
                   "or as the token")
