"""Cuts a context that is too long, at word boundaries."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from itertools import accumulate

from jittor_lora.data.encoding import TokenizerLike

# Words with the space before them, or pieces of long runs without spaces (scripts such as Chinese).
WORD = re.compile(r"\s*\S{1,16}|\s+")


class Words:
    """The words of a context with their numbers of tokens.

    Encoded one by one after a letter, words have about as many tokens as within the text; callers that need the exact
    number encode the resulting text.
    """

    def __init__(self, context: str, tokenizer: TokenizerLike):
        self.context = context
        ends = [match.end() for match in WORD.finditer(context)]
        self.bounds = [0, *ends]  # word i is context[bounds[i]:bounds[i + 1]]
        letter = tokenizer.begin("a")
        after = tokenizer.extend("a", letter, (context[a:b] for a, b in zip(self.bounds, ends)))
        counts = (max(len(ids) - len(letter), 0) for ids in after)
        self.costs = [0, *accumulate(counts)]  # tokens of the first i words

    def around(self, start: int, end: int, budget: int) -> tuple[int, int]:
        """The longest span of about `budget` tokens, centred on the characters [start, end).

        At an edge of the context it extends further to the other side. It includes the words of [start, end) even if
        they exceed the budget. Whitespace at its ends is left out, but not that of [start, end).
        """
        first = bisect_right(self.bounds, start) - 1
        last = max(bisect_left(self.bounds, end), first + 1)
        spare = max(budget - (self.costs[last] - self.costs[first]), 0)
        left = max(spare // 2, spare - (self.costs[-1] - self.costs[last]))
        begin = bisect_left(self.costs, self.costs[first] - left)
        spare -= self.costs[first] - self.costs[begin]
        stop = bisect_right(self.costs, self.costs[last] + spare) - 1
        return self._trimmed(self.bounds[begin], self.bounds[stop], start, end)

    def head(self, budget: int) -> tuple[int, int]:
        """The longest span of about `budget` tokens from the start; empty at 0 or less."""
        stop = bisect_right(self.costs, max(budget, 0)) - 1
        return self._trimmed(0, self.bounds[stop], 0, 0)

    def _trimmed(self, begin: int, stop: int, start: int, end: int) -> tuple[int, int]:
        while begin < start and self.context[begin].isspace():
            begin += 1
        while stop > max(end, begin) and self.context[stop - 1].isspace():
            stop -= 1
        return begin, stop
