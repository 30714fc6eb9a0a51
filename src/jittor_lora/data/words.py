"""Words in text with and without spaces between them."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Scripts without spaces between words (Chinese, Japanese kana, bopomofo): each character counts as a word.
UNSPACED = ("\u3005-\u3007\u3040-\u30ff\u3100-\u312f\u31a0-\u31bf\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
            "\U00020000-\U0003ffff")
PIECE = re.compile(rf"(?P<word>[{UNSPACED}]|[^\W{UNSPACED}]+)|[^\w\s]")  # a word, or one punctuation mark
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_SPACED_WORD = re.compile(rf"[^\W\d_{UNSPACED}]+")


def count_words(text: str) -> int:
    """Runs of letters and digits, and single Chinese or Japanese characters."""
    return sum(match.lastgroup == "word" for match in PIECE.finditer(text))


def is_chinese(texts: Iterable[str]) -> bool:
    """Whether most words of the texts, without numbers, are Chinese characters."""
    han = others = 0
    for text in texts:
        han += len(_HAN.findall(text))
        others += len(_SPACED_WORD.findall(text))
    return han > others
