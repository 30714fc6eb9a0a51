"""Chat templates by name, for bases that have none: Jinja files in `templates/`, written to the known formats."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).with_name("templates")
# Name -> (file, whether it writes the begin-of-text token itself). The others get it from `named_source` where the
# tokenizer puts one before each text.
NAMED = {
    "chatml": ("chatml.jinja", False),
    "llama3": ("llama3.jinja", True),
    "mistral": ("mistral.jinja", True),
    "gemma": ("gemma.jinja", True),
    "zephyr": ("zephyr.jinja", False),
    "vicuna": ("vicuna.jinja", False),
    "alpaca": ("alpaca.jinja", False),
    "gpt2": ("gpt2.jinja", False),
}


def named_source(name: str, begins: bool) -> str:
    """The template `name`, which writes `bos_token` first if the texts of the base begin with one.

    Raises:
        KeyError: no such name.
    """
    file, writes_begin = NAMED[name]
    source = (_FOLDER / file).read_text(encoding="utf-8")
    return source if writes_begin or not begins else "{{- bos_token }}\n" + source
