"""Texts disguised so that none of their characters can become part of a special token.

Some characters of a text are replaced, one for one, by others of Unicode's private use: one in each special token that
the text spells out, and those at its edges that a template could complete to one. A template renders the disguised
texts; a special token in the result is the template's, and replacing the characters back gives the text as it is.
"""

from __future__ import annotations

import re
from itertools import chain
from typing import Iterable, Iterator, Sequence

from jittor_lora.errors import UserError

_PRIVATE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


class Disguise:
    """Disguises texts from the special tokens `special`."""

    def __init__(self, special: Sequence[str]):
        self._special = tuple(special)
        spellings = "|".join(map(re.escape, sorted(special, key=len, reverse=True))) or "(?!)"
        self._any = re.compile(spellings)
        self._each = re.compile(f"(?=({spellings}))")  # overlapping ones, too
        self._starts = {token[:end] for token in special for end in range(1, len(token))}
        self._ends = {token[start:] for token in special for start in range(1, len(token))}
        self._longest = max(map(len, special), default=0)

    def __call__(self, texts: Sequence[str]) -> tuple[list[str], dict[int, str]]:
        """(The disguised texts, a table for `str.translate` that restores them); the table is empty if none changed.

        Raises:
            UserError: the texts leave no character to replace others by.
        """
        places = [self._places(text) for text in texts]
        if not any(places):
            return list(texts), {}
        taken = {ord(character) for text in (*texts, *self._special) for character in text}
        free = (code for code in chain(*_PRIVATE) if code not in taken)
        codes: dict[str, int] = {}
        disguised = []
        for text, indices in zip(texts, places):
            characters = list(text)
            for i in indices:
                if text[i] not in codes:
                    codes[text[i]] = next(free, 0)
                characters[i] = chr(codes[text[i]])
            disguised.append("".join(characters))
        if 0 in codes.values():
            raise UserError("texts that use all of Unicode's characters for private use cannot be encoded.")
        return disguised, {code: character for character, code in codes.items()}

    def _places(self, text: str) -> set[int]:
        """Indices of the characters to replace."""
        found = set()
        if self._any.search(text):
            found = {_visible(text, match.start(), match.end(1)) for match in self._each.finditer(text)}
        first, last = len(text) - len(text.lstrip()), len(text.rstrip())  # templates trim texts
        for start in {0, first}:
            found |= {_visible(text, start, end) for end in self._ends_of(text, start)}
        for end in {len(text), last}:
            found |= {_visible(text, start, end) for start in self._starts_of(text, end)}
        if first < last < first + self._longest and any(text[first:last] in token for token in self._special):
            found.add(first)
        return found

    def _ends_of(self, text: str, start: int) -> Iterator[int]:
        """Where ends of special tokens that begin at `start` stop."""
        stops = range(start + 1, min(start + self._longest, len(text) + 1))
        return (stop for stop in stops if text[start:stop] in self._ends)

    def _starts_of(self, text: str, end: int) -> Iterable[int]:
        """Where beginnings of special tokens that stop at `end` begin."""
        return (start for start in range(max(end - self._longest + 1, 0), end) if text[start:end] in self._starts)


def _visible(text: str, start: int, end: int) -> int:
    """The first character in a range that is no whitespace, since templates trim that; else the first."""
    return next((i for i in range(start, end) if not text[i].isspace()), start)
