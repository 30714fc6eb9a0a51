"""The candidate answers of a context: its spans, as a tree of tokens."""

from __future__ import annotations

from collections.abc import Callable

from jittor_lora.data.words import PIECE, is_chinese
from jittor_lora.inference.token_tree import Node

MAX_WORDS = 16  # of a span
MAX_CHARACTERS = 40  # of a span in a Chinese context, where each is a word


def spans_of(context: str, max_words: int | None = None) -> list[tuple[int, int]]:
    """(start, end) in characters of every span that starts and ends at a word or punctuation boundary.

    A word is a run of letters and digits, or one Chinese or Japanese character; any other visible character is
    punctuation. A span holds one to `max_words` words and any punctuation next to and between them; by default
    `MAX_WORDS`, and `MAX_CHARACTERS` if most words of the context are Chinese.
    """
    if max_words is None:
        max_words = MAX_CHARACTERS if is_chinese([context]) else MAX_WORDS
    pieces = [(m.start(), m.end(), m.lastgroup == "word") for m in PIECE.finditer(context)]
    found = []
    for first, (start, _, _) in enumerate(pieces):
        words = 0
        for _, end, is_word in pieces[first:]:
            words += is_word
            if words > max_words:
                break
            if words:
                found.append((start, end))
    return found


def span_tree(context: str, encode: Callable[[list[str]], list[list[int]]], max_tokens: int,
              max_words: int | None = None) -> Node:
    """The root of the tree of all spans of `context`.

    Each span is tokenised as an answer, so its score in the tree is that of the answer. Spans share the nodes of their
    common prefix of tokens.

    Args:
        encode: answer texts → token ids, without end of text.
        max_tokens: longer spans are skipped.
        max_words: see `spans_of`.
    """
    root, spans = Node(), spans_of(context, max_words)
    for span, tokens in zip(spans, encode([context[start:end] for start, end in spans])):
        if len(tokens) <= max_tokens:
            root.add(tokens, span)
    return root
