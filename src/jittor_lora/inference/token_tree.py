"""Several possible continuations as a tree of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional


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
