"""Output for other programs."""

from __future__ import annotations

import json
import sys
from typing import Any


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON, in ASCII if standard output cannot encode it otherwise."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent, ensure_ascii=True, allow_nan=False)
    return text
