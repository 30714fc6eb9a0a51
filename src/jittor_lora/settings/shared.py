"""Settings that several verbs share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Dict, Literal, Optional

from pydantic import AfterValidator, BeforeValidator

from jittor_lora.data.columns import read_columns, wrong_columns
from jittor_lora.data.named_templates import NAMED
from jittor_lora.data.template import DEFAULT_TEMPLATE, Template
from jittor_lora.errors import UserError
from jittor_lora.settings.base import PATH, TEXT, setting

DATA = "Data"  # the group
LARGEST_SEED = 2**63 - 1
CANDIDATES = 20  # for the highest expected F1
SPAN_TEMPERATURE = 2.0  # chosen on held-out training articles, see docs/ablations.md
LINE_BREAKS = r"\n is a line break, \\ a backslash"  # in the help of texts


def _checked(text: Optional[str]) -> Optional[str]:
    try:
        Template(DEFAULT_TEMPLATE if text is None else text)
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


def _read_arguments(value: Any) -> Any:
    if isinstance(value, str):
        pairs = [part.partition("=") for part in value.split(",")]
        value = {name.strip(): text.strip() for name, _, text in pairs}
    if not isinstance(value, dict):
        return value
    # A recipe, like the command line, holds texts alone.
    return {name: _value(held) if isinstance(held, str) else held for name, held in value.items()}


def _value(text: str) -> Any:
    """What a text stands for: true, false, a number, or itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _plain_arguments(values: Optional[Dict[str, Any]]) -> Optional[Dict[str, Any]]:
    for name, value in (values or {}).items():
        if not name.isidentifier() or isinstance(value, (dict, list)) or value == "":
            raise ValueError(f"expected names with values (enable_thinking=false), found {name}={value}")
    return values


Columns = Annotated[Optional[Dict[str, str]], BeforeValidator(_read), AfterValidator(_named)]
ChatArguments = Annotated[Optional[Dict[str, Any]], BeforeValidator(_read_arguments),
                          AfterValidator(_plain_arguments)]
TemplateText = Annotated[str, AfterValidator(_checked)]
OptionalTemplateText = Annotated[Optional[str], AfterValidator(_checked)]
SpecialTokens = Literal["text", "token"]
Scoring = Literal["auto", "squad", "squad-v2", "cmrc"]
TextScores = Literal["auto", "e2e", "webnlg"]
Precision = Literal["fp32", "tf32", "bf16"]
BasePrecision = Literal["auto", "fp32", "bf16", "q8", "q4"]


def template_setting(group: str, description: str) -> Any:
    return setting(DEFAULT_TEMPLATE, group, f"{description}; {LINE_BREAKS}", holds=TEXT)


def own_template_setting(group: str) -> Any:
    return setting(None, group, f"text with {{context}}, {{question}} and {{answer}}; {LINE_BREAKS}; by default that "
                   f"of the adapter's training, else {DEFAULT_TEMPLATE!r}", holds=TEXT)


def columns_setting() -> Any:
    return setting(None, DATA, "what the data calls our fields, such as prompt=query,completion=answer or "
                   "messages=dialog,role=speaker,role.user=USER; by default our names",
                   expected="our names with the data's fields (prompt=query,completion=answer)")


def scoring_setting(group: str) -> Any:
    return setting("auto", group, "rule for exact match and F1: squad (v1.1, English), squad-v2 (with questions that "
                   "have no answer), cmrc (Chinese: CMRC 2018, DRCD); auto chooses by the data")


def text_scores_setting(group: str) -> Any:
    return setting("auto", group, "scores of prompts whose references are texts: e2e (the E2E challenge's), webnlg "
                   "(those of WebNLG and DART); auto chooses by the data")


def precision_setting(group: str) -> Any:
    return setting("bf16", group, "dtype of matrix products with the base's weights; bf16 is nearly twice as fast, and "
                   "falls back to fp32 where the processor lacks it, and in full fine-tuning on GPUs; tf32 is for GPUs "
                   "alone")


def base_precision_setting(group: str) -> Any:
    return setting("auto", group, "what the frozen weights are kept in, and decoded from in each product: auto (as in "
                   "the base's files), fp32, bf16, q8 or q4; the last three quantise the base once, into the cache")


def special_tokens_setting(group: str) -> Any:
    return setting("text", group, "read a special token spelled out in the data, such as <|im_start|>, as plain text "
                   "or as the token; training on such data needs one of the two to be given")


def own_special_tokens_setting(group: str) -> Any:
    return setting(None, group, "read a special token spelled out, such as <|im_start|>, as plain text or as the "
                   "token; by default as in the adapter's training, else as text")


def chat_template_setting(group: str, default: str) -> Any:
    """
    Args:
        default: whose template it is if none is given.
    """
    return setting(None, group, f"chat template of conversations: a .jinja file or one of {', '.join(NAMED)}; by "
                   f"default {default}", holds=PATH, min_length=1)


def chat_arguments_setting(group: str) -> Any:
    return setting(None, group, "variables of the chat template, such as enable_thinking=false",
                   expected="names with values (enable_thinking=false)")
