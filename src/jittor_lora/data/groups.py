"""Tokenised examples: a shared prefix and the branches that continue it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Branch:
    """One example, without its group's prefix.

    Attributes:
        id: the example's name in the data (a SQuAD question id, a line number).
        prompt: token ids between the prefix and the completion.
        completion: token ids to learn, end of text included; empty if there is nothing to learn.
        unscored: ranges [start, end) of the completion that are prompt again: what a user says between two turns of an
            assistant. It starts and ends with tokens to learn.
        weight: of each of its tokens in the loss.
        others: the same example with other completions, each with a weight and without others: several reference
            answers to one question.
    """

    id: str
    prompt: list[int]
    completion: list[int]
    unscored: tuple[tuple[int, int], ...] = ()
    weight: float = 1.0
    others: tuple[Branch, ...] = ()

    @property
    def all(self) -> tuple[Branch, ...]:
        """This completion and the others."""
        return (self, *self.others)

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
                if not all(one.prompt for one in branch.all):
                    raise ValueError(f"example {branch.id} has no token before its completion")

    def with_branches(self, branches: list[Branch]) -> TokenGroup:
        """The same prefix with some of the branches."""
        return TokenGroup(self.prefix, branches)


def separate(groups: Iterable[TokenGroup]) -> list[TokenGroup]:
    """Each example in a separate group, the prefix copied into its prompt."""
    def whole(branch: Branch, prefix: list[int]) -> Branch:
        return replace(branch, prompt=prefix + branch.prompt,
                       others=tuple(whole(other, prefix) for other in branch.others))

    return [TokenGroup([], [whole(branch, group.prefix)]) for group in groups for branch in group.branches]


def drawn(groups: Iterable[TokenGroup], seed: int, epoch: int) -> list[TokenGroup]:
    """The examples with one completion each, drawn in proportion to the weights.

    Args:
        seed, epoch: 0 or more; what is drawn depends only on them and on the order of the examples.
    """
    # The third number tells this stream from the one that shuffles the epoch, see `stream.batches`.
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, 1])))

    def one_of(branch: Branch) -> Branch:
        if not branch.others:
            return branch
        reached = np.cumsum([one.weight for one in branch.all])
        chosen = np.searchsorted(reached, random.random() * reached[-1], side="right")
        return replace(branch.all[chosen], weight=1.0, others=())

    return [group.with_branches([one_of(branch) for branch in group.branches]) for group in groups]
