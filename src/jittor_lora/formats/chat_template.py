"""Chat templates of base models, by name, and in files.

A base keeps its template in `chat_template.jinja` (transformers 5), in `tokenizer_config.json` under `chat_template`,
or in a GGUF file's metadata under `tokenizer.chat_template`.
"""

from __future__ import annotations

import difflib
from os import PathLike
from pathlib import Path
from typing import Any, Mapping

from jittor_lora.data.chat_template import LARGEST_TEMPLATE, ChatTemplate
from jittor_lora.data.named_templates import NAMED, named_source
from jittor_lora.errors import UserError
from jittor_lora.files.untrusted import read_input
from jittor_lora.formats.adapter_files import CHAT_TEMPLATE_FILE
from jittor_lora.formats.hugging_face import shorten
from jittor_lora.formats.tokenizer import Tokenizer
from jittor_lora.formats.tokenizer_steps import named_tokens
from jittor_lora.settings.text import home_expanded

_DEFAULT = "default"
_BYTES_PER_CHARACTER = 4


def base_chat_template(base: str | PathLike, tokenizer: Tokenizer,
                       arguments: Mapping[str, Any] | None = None) -> ChatTemplate | None:
    """The chat template of a base model, None if it has none.

    Args:
        base: its folder or GGUF file.
        tokenizer: its tokenizer.
        arguments: variables of the template, such as {"enable_thinking": False}.

    Raises:
        UserError: the template is too long, no text, or one of several of which none is the default.
    """
    base, tokens = Path(base), named_tokens(tokenizer.config)
    if (base / CHAT_TEMPLATE_FILE).is_file():
        path = base / CHAT_TEMPLATE_FILE
        return ChatTemplate(read_chat_template(path), str(path), tokens, arguments)
    origin = str(base / "tokenizer_config.json" if base.is_dir() else base)
    source = _default(tokenizer.config.get("chat_template"), origin)
    return None if source is None else ChatTemplate(source, origin, tokens, arguments)


def chosen_chat_template(choice: str, tokenizer: Tokenizer,
                         arguments: Mapping[str, Any] | None = None) -> ChatTemplate:
    """A chat template by name (`NAMED`), or the path of a Jinja file.

    Raises:
        UserError: no such name or file.
    """
    tokens = named_tokens(tokenizer.config)
    if choice in NAMED:
        begin = tokens.get("bos_token")
        begins = begin is not None and [span.id for span in tokenizer.added(begin)] == list(tokenizer.opening)
        return ChatTemplate(named_source(choice, begins), choice, tokens, arguments)
    path = Path(home_expanded(choice))
    if not path.exists():
        near = difflib.get_close_matches(choice.lower(), NAMED, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"{choice}: no such chat template.{hint} Expected one of {', '.join(NAMED)}, or a file with a "
                        "Jinja template.")
    return ChatTemplate(read_chat_template(path), choice, tokens, arguments)


def read_chat_template(path: Path) -> str:
    """The text of a Jinja file.

    Raises:
        UserError: it is too long, or not UTF-8.
    """
    try:
        return read_input(path, LARGEST_TEMPLATE * _BYTES_PER_CHARACTER).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected a chat template in UTF-8; found the byte {error.object[error.start]:#04x} "
                        f"at {error.start:,}. Save it as UTF-8.") from error


def _default(value: Any, origin: str) -> str | None:
    """The template in a configuration: a text, or one of a list of {"name": …, "template": …}."""
    if value is None or isinstance(value, str):
        return value
    named = value
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item.get("name"), str)}
    if not isinstance(named, dict):
        raise UserError(f"{origin}: chat_template: expected a text, or a list of names with templates; "
                        f"found {type(value).__name__}.")
    if not isinstance(named.get(_DEFAULT), str):
        raise UserError(f"{origin}: chat_template: expected a template named {_DEFAULT}; found "
                        f"{shorten(map(str, named), 5) or 'none'}. Save the one to use as a file, and name that "
                        "(--chat-template).")
    return named[_DEFAULT]
