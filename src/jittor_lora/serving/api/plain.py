"""Values of untrusted files in a form that every reader of JSON takes."""

from __future__ import annotations

import math
from typing import Any, Optional

LONGEST_TEXT = 2000  # characters
MOST_ITEMS = 500  # of a list or mapping
_TOO_DEEP = 4


def is_number(value: Any) -> bool:
    """A finite one."""
    return type(value) in (int, float) and math.isfinite(value)


def shown_text(value: Any) -> Optional[str]:
    """A text, of limited length and without halves of surrogate pairs, which UTF-8 cannot hold; None for no text."""
    return value[:LONGEST_TEXT].encode("utf-8", "replace").decode() if isinstance(value, str) else None


def shown(value: Any, depth: int = 0) -> Any:
    """A value of JSON or YAML with limited texts, lists and depth; what is not finite is null."""
    if isinstance(value, str):
        return shown_text(value)
    if isinstance(value, dict):
        return {str(shown_text(key)): shown(item, depth + 1) for key, item in list(value.items())[:MOST_ITEMS]} \
            if depth < _TOO_DEEP else "…"
    if isinstance(value, list):
        return [shown(item, depth + 1) for item in value[:MOST_ITEMS]] if depth < _TOO_DEEP else "…"
    return value if value is None or isinstance(value, bool) or is_number(value) else None
