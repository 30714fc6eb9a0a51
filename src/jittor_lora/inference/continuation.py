"""The text of a continuation as its tokens arrive."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

CONTEXT_TOKENS = 8  # more than the bytes of a character: the last whole character is within them
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what a decoder returns for bytes that are not a whole character


class Continuation:
    """Turns tokens into text, one at a time.

    Text is released once it is certain: whole characters only (a character may take several tokens), and nothing that
    may still turn out to be the start of a stop text. A token costs the decoding of the few tokens since the last
    whole character, not of the whole text.

    Args:
        decode: token ids to text.
        ends: tokens that end a text.
        stops: texts that end a text, and are not part of it; the first to be complete does.
        before: the tokens being continued, or the last of them: the spelling of a token may depend on those before it.
        trim: drop leading whitespace (an answer follows its prompt after a space).

    Attributes:
        text: what has been released so far.
        decoded: characters of all tokens so far that are whole, before trimming.
        released: those of them that have been released, or were trimmed.
        done: end of text or a stop text was reached.
    """

    def __init__(self, decode: Callable[[list[int]], str], ends: Collection[int], stops: Sequence[str] = (),
                 trim: bool = False, before: Sequence[int] = ()):
        self._decode, self.ends, self._stops, self._trim = decode, ends, stops, trim
        self._known = _last_whole_characters(decode, before)  # decoded with the new tokens, which may depend on them
        self._new: list[int] = []  # tokens after those
        self._whole = ""  # the text before the new tokens, released or held back
        self.text = ""
        self.decoded = self.released = 0
        self.done = False

    def add(self, token: int) -> str:
        """Take the next token; returns the text that has become certain."""
        if self.done:
            return ""
        if token in self.ends:
            return self.finish()
        self._new.append(token)
        text = self._decoded()
        found = [at for at in map(text.find, self._stops) if at >= 0]
        if found:
            self.done = True
            return self._release(text[: min(found)])
        if text != self._whole and not text.endswith(REPLACEMENT):
            self._whole, self._known, self._new = text, self._new, []
        text = text.rstrip(REPLACEMENT)
        self.decoded = len(text)
        return self._release(text[: len(text) - max((_overlap(text, stop) for stop in self._stops), default=0)])

    def finish(self) -> str:
        """No more tokens; returns the text that was held back."""
        if self.done:
            return ""
        self.done = True
        return self._release(self._decoded())

    def _decoded(self) -> str:
        if not self._new:
            return self._whole
        known = self._decode(self._known) if self._known else ""
        return self._whole + self._decode(self._known + self._new)[len(known):]

    def _release(self, text: str) -> str:
        self.released = len(text)
        new = (text.lstrip() if self._trim else text)[len(self.text):]
        self.text += new
        return new


def _last_whole_characters(decode: Callable[[list[int]], str], tokens: Sequence[int]) -> list[int]:
    """The fewest last tokens that start with a whole character."""
    for count in range(1, min(len(tokens), CONTEXT_TOKENS) + 1):
        if REPLACEMENT not in decode(list(tokens[-count:])):
            return list(tokens[-count:])
    return []


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a prefix of `stop`."""
    return next((n for n in range(min(len(text), len(stop)), 0, -1) if text.endswith(stop[:n])), 0)
