"""Untrusted YAML files of settings, as other programs write them: plain data, of limited size and depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from jittor_lora.errors import UserError
from jittor_lora.files.untrusted import read_input
from jittor_lora.formats.adapter_check import regular_file

LARGEST = 256 << 10  # bytes
DEEPEST = 20


def read_settings(path: Path) -> dict[str, Any]:
    """The mapping in the file.

    Raises:
        UserError: no such file, too large, not YAML in UTF-8 or not a mapping; or it has aliases, which can expand
            without bound, or tags that make objects.
    """
    content = read_input(regular_file(path), LARGEST)
    try:
        depth = 0
        for event in yaml.parse(content.decode("utf-8-sig"), Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST or isinstance(event, yaml.AliasEvent):
                raise UserError(f"{path}: expected plain settings; found aliases or more than {DEEPEST} levels.")
        values = yaml.load(content.decode("utf-8-sig"), Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise UserError(f"{path}: not valid YAML: {getattr(error, 'problem', None) or 'unreadable'}{line}.") from error
    except (ValueError, OverflowError, TypeError) as error:  # not UTF-8; numbers, dates and keys that cannot be made
        raise UserError(f"{path}: not valid YAML in UTF-8: {str(error)[:200]}.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected lines of the form `setting: value`; found {type(values).__name__}.")
    return values
