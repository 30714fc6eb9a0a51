"""Tokenised examples: a shared prefix and the branches that continue it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Branch:
    """One example, without its group's prefix.

    Attributes:
        id: the example's name in the data (a SQuAD question id, a line number).
        prompt: token ids between the prefix and the completion.
        completion: token ids to learn, end of text included; empty if there is nothing to learn.
        unscored: ranges [start, end) of the completion that are prompt again: what a user says between two turns of an
            assistant. It starts and ends with tokens to learn.
    """

    id: str
    prompt: list[int]
    completion: list[int]
    unscored: tuple[tuple[int, int], ...] = ()

    @property
    def scored(self) -> int:
        """The number of tokens to learn."""
        return len(self.completion) - sum(end - start for start, end in self.unscored)


@dataclass(frozen=True)
class TokenGroup:
    """Examples whose texts start with the same tokens.

    Raises:
        ValueError: no branch, or a branch with no token before its completion to predict it from.
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
    """Each example in a separate group, the prefix copied into its prompt."""
    return [TokenGroup([], [replace(b, prompt=g.prefix + b.prompt)]) for g in groups for b in g.branches]
