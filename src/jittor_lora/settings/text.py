r"""Settings as text, on the command line and in recipes: flags, `~` in paths, `\n` in texts, comma-separated lists."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from pydantic import AfterValidator

from jittor_lora.settings.names import did_you_mean, nearest

_ESCAPE, _ESCAPES = re.compile(r"\\([nt\\])"), {"n": "\n", "t": "\t", "\\": "\\"}


def flag(field: str) -> str:
    """The command-line flag of a field: "--lora-r"."""
    return "--" + field.replace("_", "-")


def home_expanded(path: str) -> str:
    """`path` with a leading `~` expanded, which the shell does not do in `--output=~/x`. A file of that very name is
    written `./~`."""
    try:
        return os.path.expanduser(path)
    except ValueError:  # no user can have such a name, and no file either
        return path


def unescaped(text: str) -> str:
    """A text from the command line or a recipe: `\\n` is a line break, `\\t` a tab, `\\\\` a backslash; any other
    backslash stands for itself."""
    return _ESCAPE.sub(lambda found: _ESCAPES[found[1]], text)


def escaped(text: str) -> str:
    """The inverse of `unescaped`. Line breaks stay, as YAML can write them."""
    return text.replace("\\", r"\\")


def names(text: str) -> list[str]:
    """The names in a comma-separated list, without duplicates."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def checked_list(text: str, known: Iterable[str]) -> str:
    """`text`, a comma-separated list of names.

    Raises:
        ValueError: the list is empty, or a name is not known.
    """
    wrong = [name for name in names(text) if name not in known]
    if wrong or not names(text):
        hint = did_you_mean(nearest(wrong[0], known)) if wrong else ""
        raise ValueError(f"expected some of {', '.join(known)}, found {', '.join(wrong) or 'none'}{hint}")
    return text


def list_of(known: Iterable[str]) -> AfterValidator:
    """The annotation of a setting that is a comma-separated list of these names."""
    return AfterValidator(lambda text: checked_list(text, known))
