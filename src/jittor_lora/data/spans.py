"""The spans of a context that can be answers, as a tree of tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Optional

MAX_WORDS = 16

# Scripts without spaces between words: each character is a word.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_PIECE = re.compile(rf"(?P<word>[{_UNSPACED}]|[^\W{_UNSPACED}]+)|[^\w\s]")


def spans_of(context: str, max_words: int = MAX_WORDS) -> list[tuple[int, int]]:
    """(start, end) in characters of every span that begins and ends at the border of a word or a sign.

    A word is a run of letters and digits, or one Chinese or Japanese character; a sign is any other visible character.
    A span holds from one to `max_words` words and any signs beside and between them.
    """
    pieces = [(m.start(), m.end(), m.lastgroup == "word") for m in _PIECE.finditer(context)]
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


class Node:
    """Tokens from the root of a tree to here, with which spans begin.

    Attributes:
        token, parent: the last of them, and the node of those before it; None at the root.
        depth: how many they are.
        children: token → the node that it leads to.
        span: the first span of the context that consists of these very tokens, None if none does.
    """

    __slots__ = ("token", "parent", "depth", "children", "span")

    def __init__(self, token: Optional[int] = None, parent: Optional[Node] = None):
        self.token, self.parent = token, parent
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.children: dict[int, Node] = {}
        self.span: Optional[tuple[int, int]] = None

    def path(self) -> list[int]:
        """The tokens from the root to here."""
        tokens, node = [], self
        while node.parent is not None:
            tokens.append(node.token)
            node = node.parent
        return tokens[::-1]

    def deepest(self) -> int:
        """The depth of the deepest node from here on."""
        most, below = self.depth, [self]
        while below:
            node = below.pop()
            most = max(most, node.depth)
            below.extend(node.children.values())
        return most

    def add(self, tokens: Sequence[int], span: tuple[int, int]) -> None:
        """Put a span below this node, which is the root."""
        node = self
        for token in tokens:
            below = node.children.get(token)
            if below is None:
                below = node.children[token] = Node(token, node)
            node = below
        if node.span is None:
            node.span = span


def span_tree(context: str, encode: Callable[[list[str]], list[list[int]]], max_tokens: int,
              max_words: int = MAX_WORDS) -> Node:
    """The root of the tree of all spans of `context`.

    Each span is tokenised as the answer that it would be, so a span's score in the tree is that of the answer. Spans
    that begin alike share nodes; where a longer span is cut into other tokens than a shorter one, they part.

    Args:
        encode: texts of answers → their tokens, without end of text.
        max_tokens: longer spans are left out.
    """
    root, spans = Node(), spans_of(context, max_words)
    for span, tokens in zip(spans, encode([context[start:end] for start, end in spans])):
        if len(tokens) <= max_tokens:
            root.add(tokens, span)
    return root
