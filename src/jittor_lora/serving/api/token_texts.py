"""Single tokens as texts and bytes, for log-probabilities."""

from __future__ import annotations

import codecs
import re
from functools import cached_property, lru_cache
from typing import Optional

from jittor_lora.formats.byte_level import CHARACTERS
from jittor_lora.formats.tokenizer import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # a token for a byte that no other token has, as in Llama 2's vocabulary
_BYTES = {character: byte for byte, character in CHARACTERS.items()}


class TokenTexts:
    """The bytes of each token, as they are within a text."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self.bytes = lru_cache(1 << 16)(self._bytes)

    def prepare(self) -> None:
        """Do what takes a moment at first."""
        _ = self._before

    def text(self, token: int) -> str:
        """The token's text; of one that is not whole characters, its bytes as OpenAI spells them: bytes:\\xe4\\xb8."""
        try:
            return self.bytes(token).decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.bytes(token))

    @cached_property
    def _pieces(self) -> dict[int, str]:
        return {number: piece for piece, number in self._tokenizer.vocabulary.items()}

    @cached_property
    def _before(self) -> list[int]:
        """A token to put before others: many decoders drop the space at the start of a text."""
        whole = (number for number in sorted(self._pieces) if self._tokenizer.decode([number]).isalpha())
        return [token for token in [next(whole, None)] if token is not None]

    def _bytes(self, token: int) -> bytes:
        before = self._tokenizer.decode(self._before)
        text = self._tokenizer.decode([*self._before, token])[len(before):]
        if REPLACEMENT not in text:
            return text.encode("utf-8")
        piece = self._pieces.get(token, "")
        byte = _BYTE.fullmatch(piece)
        if byte:
            return bytes([int(byte[1], 16)])
        return bytes(map(_BYTES.get, piece)) if piece and set(piece) <= _BYTES.keys() else text.encode("utf-8")


class Offsets:
    """Where each token starts in a text, in characters, as the tokens arrive."""

    def __init__(self, start: int = 0):
        self._at = start
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: bytes) -> int:
        at = self._at
        self._at += len(self._decoder.decode(token))
        return at


def finite(log_probability: Optional[float]) -> Optional[float]:
    """As JSON holds it: OpenAI's number for what cannot occur."""
    return None if log_probability is None else max(log_probability, -9999.0)
