"""Decodes a log written in any of the usual encodings."""

from __future__ import annotations

import codecs
from typing import NamedTuple

# UTF-32's marks start like UTF-16's, so they are tried first.
_MARKS = ((codecs.BOM_UTF8, "utf-8", "UTF-8"), (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32"),
          (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32"), (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
          (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"))


class Decoded(NamedTuple):
    """A text, and a note on its encoding that is empty for valid UTF-8."""

    text: str
    note: str = ""


def decode(content: bytes) -> Decoded:
    """The text of a file: by its byte order mark, else as UTF-8, else as GB18030, which Chinese Windows writes.

    A character cut off by the end of the file, as in a log still being written, is dropped. If the file as a whole is
    not UTF-8, each line is decoded separately, because programs with different encodings append to one log. Digits
    and English words are the same in both, so bytes valid in neither cost only their own characters.
    """
    for mark, encoding, name in _MARKS:
        if content.startswith(mark):
            text = content[len(mark):].decode(encoding, errors="replace")
            return Decoded(text, "" if name == "UTF-8" else f"read as {name}")
    try:
        return Decoded(codecs.getincrementaldecoder("utf-8")().decode(content))
    except UnicodeDecodeError:
        pass
    lines, counts = [], {"UTF-8": 0, "GB18030": 0, "neither": 0}
    *whole, last = content.split(b"\n")
    for line in (*whole, last):
        text, encoding = _line(line, final=line is not last)
        lines.append(text)
        counts[encoding] += not line.isascii()
    used = " and ".join(name for name in ("UTF-8", "GB18030") if counts[name])
    notes = [f"read as {used}" + (", line by line" if "and" in used else "")] if used else []
    if counts["neither"]:
        notes.append(f"{counts['neither']} lines are neither UTF-8 nor GB18030; only their ASCII characters were read")
    return Decoded("\n".join(lines), "; ".join(notes))


def _line(line: bytes, final: bool) -> tuple[str, str]:
    for encoding, name in (("utf-8", "UTF-8"), ("gb18030", "GB18030")):
        try:
            return codecs.getincrementaldecoder(encoding)().decode(line, final), name
        except UnicodeDecodeError:
            continue
    return line.decode("ascii", errors="replace"), "neither"
