"""Token ids of rendered conversations, in which the template's special tokens are tokens and others are text.

The text of a conversation is encoded as a whole, since a token, a space put before a text or a normalizer may depend on
what stands on either side. To tell a template's `<|im_end|>` from one that a user spelled out, a copy of the tokenizer
reads no special tokens at all, and knows an unguessable alias for each one that a template writes.
"""

from __future__ import annotations

import re
import secrets
import unicodedata
from typing import Iterable, Iterator, NamedTuple, Sequence

import tokenizers
from tokenizers import AddedToken, processors

_PRIVATE, _COUNT = 0x100000, 0xFFFD  # characters of the last plane for private use
_SECRET = 6  # characters
_JOINERS = "\u200c\u200d"
_IN_WORDS = ("Mc", "Me", "Mn", "Nd", "Nl", "Pc")


class AddedSpan(NamedTuple):
    """An added token spelled out in a text.

    Attributes:
        start, end: its characters.
        id: of the token.
        special: whether it is a special token; others have their meaning in any text.
    """

    start: int
    end: int
    id: int
    special: bool


class RenderedText:
    """Encodes rendered conversations with one tokenizer."""

    def __init__(self, backend: tokenizers.Tokenizer):
        self._backend = tokenizers.Tokenizer.from_str(backend.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        # Without this, some tokenizers leave the space out of the characters of " a".
        self._backend.post_processor = processors.ByteLevel(trim_offsets=False)
        added = backend.get_added_tokens_decoder()
        self._ids = {token.content: index for index, token in added.items()}
        self._tokens = dict(added)
        self._special = {index: token.content for index, token in added.items() if token.special}
        # The library looks for those of a normalized text after the others, and for the longest first.
        self._patterns = [_any_of(token.content for token in added.values() if bool(token.normalized) is normalized)
                          for normalized in (False, True)]
        self._secret = "".join(chr(_PRIVATE + secrets.randbelow(_COUNT)) for _ in range(_SECRET))
        self._aliases: dict[int, str] = {}  # by id
        self._meant: dict[int, int] = {}  # the alias's id -> the token's id

    def added(self, text: str) -> list[AddedSpan]:
        """The added tokens that the library finds in a text if special ones are read as tokens."""
        return [AddedSpan(start, end, index, index in self._special)
                for start, end, index in self._added(text, 0, len(text), self._patterns)]

    def _added(self, text: str, start: int, end: int, patterns: Sequence[re.Pattern]) -> Iterator[tuple[int, int, int]]:
        """(Start, end, id) of matches of the first pattern, and between them of the others, in the text's order."""
        if not patterns:
            return
        for match in patterns[0].finditer(text, start, end):
            index = self._ids[match.group()]
            if not self._tokens[index].single_word or not (_ends_in_word(text[: match.start()])
                                                           or _ends_in_word(text[match.end() :][:1])):
                yield from self._added(text, start, match.start(), patterns[1:])
                yield match.start(), match.end(), index
                start = match.end()
        yield from self._added(text, start, end, patterns[1:])

    def encode(self, text: str, special: Sequence[AddedSpan]) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids and the characters of each token.

        Args:
            special: the spans that are special tokens, in order; any other spelling of one is text.

        Raises:
            ValueError: the tokenizer does not read a special token where one is given, or reads one where none is.
        """
        pieces, end = [], 0
        for span in special:
            pieces += [text[end : span.start], self._alias(span.id)]
            end = span.end
        written = "".join([*pieces, text[end:]])
        encoded = self._backend.encode(written, add_special_tokens=False)
        ids, offsets = encoded.ids, encoded.offsets
        at = [i for i, index in enumerate(ids) if index in self._meant]
        if len(at) != len(special):
            raise ValueError(f"{len(special) - len(at)} special tokens of the text are not read as tokens")
        for index, (start, stop) in zip(ids, offsets):
            if index in self._special and self._special[index] in written[start:stop]:
                raise ValueError(f"it makes the special token {self._special[index]} of the same letters in a text")
        shift, done = 0, 0
        for i, span in zip([*at, len(ids)], [*special, None]):
            if shift:
                offsets[done:i] = [(start + shift, stop + shift) for start, stop in offsets[done:i]]
            if span is None:
                break
            shift += span.end - span.start - len(self._aliases[span.id])
            ids[i], offsets[i], done = span.id, (span.start, span.end), i + 1  # the library's may include spaces
        return ids, offsets

    def _alias(self, index: int) -> str:
        if index not in self._aliases:
            number, token = len(self._aliases), self._tokens[index]
            alias = self._secret + chr(_PRIVATE + number // _COUNT) + chr(_PRIVATE + number % _COUNT)
            # Not marked special, so that it is read although no special token is.
            self._backend.add_tokens([AddedToken(alias, lstrip=token.lstrip, rstrip=token.rstrip, normalized=False,
                                                 special=False)])
            self._meant[self._backend.token_to_id(alias)] = index
            self._aliases[index] = alias
        return self._aliases[index]


def _any_of(contents: Iterable[str]) -> re.Pattern:
    return re.compile("|".join(map(re.escape, sorted(filter(None, contents), key=len, reverse=True))) or "(?!)")


def _ends_in_word(text: str) -> bool:
    """Whether the last character belongs to words in the library's regular expressions."""
    return bool(text) and (text[-1].isalpha() or text[-1] in _JOINERS or unicodedata.category(text[-1]) in _IN_WORDS)
