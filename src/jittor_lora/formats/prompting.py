"""How the examples of an adapter's training became texts and labels: `prompting.json`, our own file beside PEFT's two.

A chat template is a second file, `chat_template.jinja`, where transformers and vLLM look for one.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from jittor_lora.data.chat_template import ChatTemplate
from jittor_lora.data.prompting import Prompting
from jittor_lora.data.template import Template
from jittor_lora.errors import UserError
from jittor_lora.files.atomic import atomic_write, write_json
from jittor_lora.formats.adapter_check import regular_file
from jittor_lora.formats.adapter_files import CHAT_TEMPLATE_FILE, PROMPTING_FILE
from jittor_lora.formats.chat_template import read_chat_template
from jittor_lora.formats.record_file import Field, read_record_file
from jittor_lora.formats.tokenizer import Tokenizer
from jittor_lora.formats.tokenizer_steps import named_tokens

LARGEST = 1 << 20  # bytes


def write_prompting(folder: Path, prompting: Prompting | None, beside: Path | None = None) -> None:
    """Write both files, or one of them without a chat template.

    Args:
        prompting: None if it is not known; files of an adapter that was saved here before are then removed.
        beside: the folder that holds those files, if it is not `folder`.
    """
    chat = prompting.chat if prompting else None
    for name, value in ((PROMPTING_FILE, prompting), (CHAT_TEMPLATE_FILE, chat)):
        if value is None:
            ((beside or folder) / name).unlink(missing_ok=True)
    if prompting is None:
        return
    if chat is not None:
        with atomic_write(folder / CHAT_TEMPLATE_FILE) as stream:
            stream.write(chat.source)
    write_json(folder / PROMPTING_FILE, {
        "template": prompting.template.text, "special_tokens": prompting.special_tokens,
        "conversations": prompting.conversations, "chat_template": Path(chat.origin).name if chat else None,
        "chat_arguments": dict(chat.arguments) if chat else {},
        "date": chat.now.isoformat() if chat and chat.uses_date else None,
        "label_smoothing": prompting.label_smoothing})


def read_prompting(folder: Path, tokenizer: Tokenizer | None = None) -> Prompting | None:
    """The prompting that `folder` holds; None if there is none.

    Args:
        tokenizer: the base's, whose special tokens a chat template writes; None if nothing is to be rendered.

    Raises:
        UserError: a file is not valid, or the chat template is missing.
    """
    path = folder / PROMPTING_FILE
    values = read_record_file(path, _FIELDS, LARGEST, "Remove the file to give template and special tokens as flags.")
    if values is None:
        return None
    chat = None
    if values["chat_template"] is not None:
        source = read_chat_template(regular_file(folder / CHAT_TEMPLATE_FILE))
        tokens = named_tokens(tokenizer.config) if tokenizer else {}
        chat = ChatTemplate(source, str(folder / CHAT_TEMPLATE_FILE), tokens, values["chat_arguments"],
                            _date(values["date"]))
    return Prompting(Template(values["template"]), chat, values["special_tokens"], values["conversations"],
                     values.get("label_smoothing") or 0.0)


def date_of(folder: Path) -> str | None:
    """The date that the chat template of a run showed; None if there is none.

    Raises:
        UserError: as `read_prompting`.
    """
    prompting = read_prompting(folder)
    return prompting.chat.now.isoformat() if prompting and prompting.chat and prompting.chat.uses_date else None


def _date(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text is not None else None


def _is_date(value: Any) -> bool:
    try:
        _date(value)
    except (TypeError, ValueError):
        return False
    return True


def _is_smoothing(value: Any) -> bool:
    return value is None or type(value) in (int, float) and 0 <= value < 1


def _is_arguments(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, (str, bool, int, float)) for v in value.values())


def _is_template(value: Any) -> bool:
    try:
        Template(value)
    except (TypeError, UserError):
        return False
    return True


_FIELDS = (
    Field("template", "a text with {context} and {question}", _is_template),
    Field("special_tokens", '"text" or "token"', lambda value: value in ("text", "token")),
    Field("conversations", "true or false", lambda value: isinstance(value, bool)),
    Field("chat_template", "the file or name that the template came from, or null",
          lambda value: value is None or isinstance(value, str)),
    Field("chat_arguments", "an object of texts, numbers and booleans", _is_arguments),
    Field("date", "a date that the chat template shows, or null", _is_date),
    Field("label_smoothing", "a number from 0 to less than 1, or nothing", _is_smoothing))
