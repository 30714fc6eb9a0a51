"""Guesses what encoding a file has that is not UTF-8, to say how to convert it; nothing is converted by a guess."""

from __future__ import annotations

import codecs
import os
import shlex

SAMPLE = 1 << 16  # bytes
START = 8  # bytes, in which no text in UTF-8 has a zero
# UTF-32's marks start like UTF-16's, so they are tried first.
_MARKS = ((codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"), (codecs.BOM_UTF16_LE, "UTF-16"),
          (codecs.BOM_UTF16_BE, "UTF-16"))
_PACKED = ((b"\x1f\x8b", "gzip", "gunzip it first"), (b"BZh", "bzip2", "bunzip2 it first"),
           (b"PK\x03\x04", "zip, or a workbook of Excel", "unzip it first, or save the sheet as CSV UTF-8"),
           (b"\x28\xb5\x2f\xfd", "zstd", "unzstd it first"), (b"\xfd7zXZ\x00", "xz", "unxz it first"))
# In double-byte text nearly all characters are of the common ones: the first level of GB 2312 and of Big5, ordered by
# pronunciation or strokes, and the punctuation and kana before it (lead bytes).
_COMMON = (("GB18030", "gb18030", ((0xB0, 0xD7), (0xA1, 0xA5))), ("BIG-5", "big5", ((0xA4, 0xC6), (0xA1, 0xA3))))
_SHARE = 0.8


def advice(raw: bytes, path: str | os.PathLike) -> str:
    """What to do about a file that is not UTF-8."""
    for start, kind, mend in _PACKED:
        if raw.startswith(start):
            return f"It is packed ({kind}): {mend}."
    name = likely_encoding(raw)
    if name is None:
        return "Save it as UTF-8."
    file, new = shlex.quote(str(path)), shlex.quote(f"{path}.utf-8")
    return f"It looks like {_KNOWN_AS.get(name, name)}. Convert it: iconv -f {name} -t UTF-8 {file} > {new}"


_KNOWN_AS = {"GB18030": "GB18030 (GBK)", "BIG-5": "Big5", "UTF-16LE": "UTF-16", "UTF-16BE": "UTF-16"}


def likely_encoding(raw: bytes) -> str | None:
    """The name that iconv gives it, None if there is no telling."""
    for mark, name in _MARKS:
        if raw.startswith(mark):
            return name
    for name, first in (("UTF-16LE", 0), ("UTF-16BE", 1)):  # without a mark, but ASCII at the start, as {"id" or [{"id
        if raw[1 - first : START : 2] == bytes(START // 2) and 0 not in raw[first:START:2]:
            return name
    sample = raw[:SAMPLE]
    found = [(_common_share(sample, codec, leads), name) for name, codec, leads in _COMMON]
    share, name = max(found)
    return name if share >= _SHARE else None


def _common_share(sample: bytes, codec: str, leads: tuple[tuple[int, int], ...]) -> float:
    """The share of common characters among those that are not ASCII; 0 if it is not this encoding."""
    try:
        text = codecs.getincrementaldecoder(codec)().decode(sample)  # the sample may end within a character
    except UnicodeDecodeError:
        return 0.0
    characters = [character.encode(codec) for character in text if not character.isascii()]
    common = sum(len(character) == 2 and any(low <= character[0] <= high for low, high in leads)
                 for character in characters)
    return common / len(characters) if characters else 0.0
