"""Reading prompts and new tokens of several groups of branches at a time: what decoding asks of a reader."""

from __future__ import annotations

from typing import Any, Hashable, NamedTuple, Protocol, Sequence

import numpy as np

BATCH_SIZE = 64  # texts that are continued at a time: branches, beams, or beginnings of spans


class Turn(NamedTuple):
    """What is read of one group at a time.

    Args:
        group: from the reader's `open` or `fork`.
        prefix: tokens of the group's prefix that are read now, before the branches.
        branches: (number of the branch in the group, its next tokens, at least one).
    """

    group: Any
    prefix: Sequence[int]
    branches: Sequence[tuple[int, Sequence[int]]]

    def tokens(self) -> list[int]:
        """All tokens, prefix first."""
        return [*self.prefix, *(token for _, tokens in self.branches for token in tokens)]


class Reader(Protocol):
    """Reads texts with a model. Its groups hold the keys and values of what has been read.

    Attributes:
        base: readers with an equal one may take the turns of each other's groups, in one call with their own.
    """

    base: Hashable

    def open(self, prefix: int, rooms: Sequence[int]) -> Any:
        """A group with room for a prefix of `prefix` tokens, and for `rooms[i]` tokens of branch i."""

    def fork(self, group: Any, length: int, rooms: Sequence[int]) -> Any:
        """A group with as much room for a prefix, of which it has read the first `length` tokens of this group's."""

    def join(self, group: Any, rooms: Sequence[int]) -> Any:
        """A group of other branches of the same prefix, which has been read whole and may be shared."""

    def rewind(self, group: Any, branch: int, length: int) -> None:
        """Forget all but the first `length` tokens of a branch."""

    def copy(self, group: Any, source: int, target: int) -> None:
        """Let a branch have read what another has; they have equal room."""

    def likeliest(self, turns: Sequence[Turn]) -> np.ndarray:
        """The token with the largest logit after each branch of each turn, (branches,).

        Raises:
            UserError: the logits are not finite.
        """

    def logits(self, turns: Sequence[Turn]) -> np.ndarray:
        """The logits after each branch of each turn, (branches, V) float32.

        Raises:
            UserError: they are not finite.
        """

    def every_row(self, group: Any, tokens: Sequence[int]) -> np.ndarray:
        """Read tokens of a group's prefix; the logits after each of them, (tokens, V) float32.

        Raises:
            UserError: they are not finite.
        """

    # Keys and values of a prefix can be stored, in blocks of `block_rows` tokens, and put into another group.

    block_rows: int
    row_bytes: int  # of the keys and values of a token

    def block(self, group: Any, number: int) -> np.ndarray:
        """Keys and values of the tokens of a group's prefix from number · block_rows on; those after the last one that
        was read are undefined."""

    def restore(self, group: Any, blocks: Sequence[np.ndarray], length: int) -> None:
        """Fill the prefix of a group that has read nothing: `length` tokens, from these blocks."""
