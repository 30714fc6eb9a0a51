"""Questions of one data set that are in another too."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from jittor_lora.evaluation.items import Item

_NO_WORD = re.compile(r"[^\w]+")


@dataclass(frozen=True)
class Duplicates:
    """Attributes:
        questions: (id in the first, id in the second) of questions that are equal with their contexts.
        contexts: ids of questions of the second whose context is in the first, whatever is asked about it.
    """

    questions: list[tuple[str, str]]
    contexts: list[str]


def duplicates(first: Sequence[Item], second: Sequence[Item]) -> Duplicates:
    """What `second` (questions to be scored) shares with `first` (questions to be trained on).

    Texts are equal if their words are: upper and lower case, punctuation, spaces and the ways to encode a character
    do not count.
    """
    known, contexts = {}, set()
    for item in first:
        context = normalized(item.context)
        known.setdefault((context, normalized(item.question)), item.id)
        contexts.add(context)
    shared, read = [], []
    for item in second:
        context = normalized(item.context)
        twin = known.get((context, normalized(item.question)))
        if twin is not None:
            shared.append((twin, item.id))
        if context and context in contexts:
            read.append(item.id)
    return Duplicates(shared, read)


def normalized(text: str) -> str:
    """The words of `text` in lower case, with a space between."""
    return _NO_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()
