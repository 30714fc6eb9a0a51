"""Questions that two data sets share."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from jittor_lora.evaluation.items import Item

_NOT_WORD = re.compile(r"[^\w]+")


@dataclass(frozen=True)
class Duplicates:
    """Attributes:
        questions: (id in the first, id in the second) of equal questions with equal contexts.
        contexts: ids of questions in the second whose context is in the first, whatever the question.
    """

    questions: list[tuple[str, str]]
    contexts: list[str]


def duplicates(first: Sequence[Item], second: Sequence[Item]) -> Duplicates:
    """What `second` (questions to score) shares with `first` (questions to train on).

    Texts are equal if their words are: case, punctuation, spaces and Unicode forms do not matter.
    """
    known, contexts = {}, set()
    for item in first:
        context = normalized(item.context)
        known.setdefault((context, normalized(item.question)), item.id)
        contexts.add(context)
    shared, seen = [], []
    for item in second:
        context = normalized(item.context)
        twin = known.get((context, normalized(item.question)))
        if twin is not None:
            shared.append((twin, item.id))
        if context and context in contexts:
            seen.append(item.id)
    return Duplicates(shared, seen)


def normalized(text: str) -> str:
    """The words of `text` in lower case, separated by one space."""
    return _NOT_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()
