"""Tokenised examples: a shared prefix and the branches that go on from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Branch:
    """One example, from the end of its group's prefix on.

    Attributes:
        id: the example's name in the data (a SQuAD question id, a line number).
        prompt: token ids between the prefix and the completion.
        completion: token ids to be learnt, end-of-text included; empty where there is nothing to learn from.
    """

    id: str
    prompt: list[int]
    completion: list[int]


@dataclass(frozen=True)
class TokenGroup:
    """Examples whose texts start with the same tokens.

    Raises:
        ValueError: no branch, or a branch without any token before its completion (nothing could predict it).
    """

    prefix: list[int]
    branches: list[Branch]

    def __post_init__(self):
        if not self.branches:
            raise ValueError("a group needs a branch")
        if not self.prefix:
            for branch in self.branches:
                if not branch.prompt:
                    raise ValueError(f"example {branch.id} has no token before its completion")

    def with_branches(self, branches: list[Branch]) -> TokenGroup:
        """The same prefix with some of the branches."""
        return TokenGroup(self.prefix, branches)


def separate(groups: Iterable[TokenGroup]) -> list[TokenGroup]:
    """Each example in a group of its own, the prefix copied into its prompt."""
    return [TokenGroup([], [Branch(b.id, g.prefix + b.prompt, b.completion)]) for g in groups for b in g.branches]
