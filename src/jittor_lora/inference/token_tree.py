"""A trie of token sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional


class Node:
    """A node stands for the tokens on the path from the root.

    Attributes:
        token, parent: the last token of the path, and the node before it; None at the root.
        depth: length of the path.
        children: token → node.
        span: the first span of the context with exactly these tokens, or None.
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
        """The depth of the deepest node of this subtree."""
        most, below = self.depth, [self]
        while below:
            node = below.pop()
            most = max(most, node.depth)
            below.extend(node.children.values())
        return most

    def add(self, tokens: Sequence[int], span: tuple[int, int]) -> None:
        """Insert a span; called on the root."""
        node = self
        for token in tokens:
            below = node.children.get(token)
            if below is None:
                below = node.children[token] = Node(token, node)
            node = below
        if node.span is None:
            node.span = span
