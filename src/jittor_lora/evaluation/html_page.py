"""Self-contained HTML pages: one file, whose Content-Security-Policy allows its own style and script alone."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Chart:
    """A chart with its alternative text."""

    svg: bytes
    alt: str


def filled(folder: Path, values: Mapping[str, str]) -> str:
    """`page.html` of the folder with its `page.css` and `page.js`; @NAME@ is replaced by that value, which is HTML."""
    style, script = (_part(folder, name) for name in ("page.css", "page.js"))
    values = {**values, "STYLE": style, "STYLE_HASH": _hash(style), "SCRIPT": script, "SCRIPT_HASH": _hash(script)}
    # Split before filling in, so that placeholders within values stay as text.
    pieces = _part(folder, "page.html").split("@")
    return "".join(values[piece] if index % 2 else piece for index, piece in enumerate(pieces))


def json_in_script(value: Any) -> str:
    """JSON that, whatever texts it contains, neither ends a script element nor starts a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def figure(chart: Chart) -> str:
    """A chart as a data: URL, which keeps its ids apart from others' and never runs scripts in it."""
    return (f'<figure tabindex="0"><img alt="{html.escape(chart.alt)}" width="1200" height="675" '
            f'src="data:image/svg+xml;base64,{base64.b64encode(chart.svg).decode()}"></figure>')


def _part(folder: Path, name: str) -> str:
    return (folder / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """The hash by which the page's Content-Security-Policy allows an inline part."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
