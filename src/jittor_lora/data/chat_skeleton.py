"""What a template writes around the texts of a conversation, whatever they say.

A skeleton is the rendering of turns whose texts are replaced by marks, one character each. It depends on the roles
alone, so that a few skeletons serve a whole data set.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Optional, Protocol, Sequence

from jittor_lora.data.chat_template import ChatTemplate, Rendering, TemplateRefusal
from jittor_lora.data.conversations import ASSISTANT, Turn

MOST_TURNS = 1_000
_FIRST_MARK = 0xF0000  # private use

Key = tuple[tuple[tuple[str, Optional[str]], ...], bool]


class FindsAdded(Protocol):
    """The part of `formats.tokenizer.Tokenizer` that finds added tokens (`formats.rendered.AddedSpan`) in a text."""

    def added(self, text: str) -> Sequence[Any]: ...


@dataclass(frozen=True)
class Skeleton:
    """A rendering with marks.

    Attributes:
        text: with the mark of turn i in place of its text.
        turns: number of turns.
        spans: the added tokens in it.
    """

    text: str
    turns: int
    spans: Sequence[Any]

    @cached_property
    def special(self) -> list[int]:
        """Ids of the special tokens, in order."""
        return [span.id for span in self.spans if span.special]

    @cached_property
    def tail(self) -> str:
        """What follows the text of the last turn; the whole text if that turn is dropped."""
        return self.text[self._tail_start :]

    @cached_property
    def end(self) -> Any | None:
        """The token that ends the last turn, as a span of the tail: the first special one there, else the first added
        one that is not whitespace; None if there is none."""
        after = [span for span in self.spans if span.start >= self._tail_start]
        ordinary = [span for span in after if self.text[span.start : span.end].strip()]
        found = next((span for span in after if span.special), next(iter(ordinary), None))
        if found is None:
            return None
        return found._replace(start=found.start - self._tail_start, end=found.end - self._tail_start)

    @cached_property
    def lost(self) -> list[tuple[int, int]]:
        """(Turn, how often its text is rendered) of the turns whose text is not rendered once."""
        counts = Counter(self.text)
        return [(i, counts[mark(i)]) for i in range(self.turns) if counts[mark(i)] != 1]

    @property
    def _tail_start(self) -> int:
        return self.text.rfind(mark(self.turns - 1)) + 1


def mark(turn: int) -> str:
    """The character that stands for the text of a turn."""
    return chr(_FIRST_MARK + turn)


class Skeletons:
    """The skeletons of one template, by roles."""

    def __init__(self, template: ChatTemplate, tokenizer: FindsAdded):
        self._template, self._tokenizer = template, tokenizer
        self._found: dict[Key, Skeleton | TemplateRefusal] = {}

    def get(self, turns: Sequence[Turn], wanted: Sequence[Rendering]) -> list[Skeleton | TemplateRefusal]:
        """The skeletons of renderings; a refusal where the template refuses these roles.

        A text that is empty or only whitespace stays as it is, because templates leave such turns out; but for an
        assistant's.
        """
        kept = tuple((turn.role, None if turn.role == ASSISTANT or turn.text.strip() else turn.text) for turn in turns)
        keys = [(kept[: rendering.count], rendering.prompt) for rendering in wanted]
        missing = [i for i, key in enumerate(keys) if key not in self._found]
        if missing:
            marked = [replace(turn, text=mark(i) if text is None else text)
                      for i, (turn, (_, text)) in enumerate(zip(turns, kept))]
            texts = self._template.render_all(marked, [wanted[i] for i in missing])
            for i, text in zip(missing, texts):
                self._found[keys[i]] = text if isinstance(text, TemplateRefusal) else Skeleton(
                    text, wanted[i].count, self._tokenizer.added(text))
        return [self._found[key] for key in keys]
