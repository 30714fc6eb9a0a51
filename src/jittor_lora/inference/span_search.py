"""Exact search for the likeliest of many possible answers.

An answer scores the log-probability of its tokens and of the end after them. Log-probabilities are never positive, so
the sum over the first tokens of an answer is an upper bound for all answers that start with them. Nodes of the token
tree are read best-first (A* with a zero heuristic, Hart et al. 1968) until no bound exceeds the best complete score,
which is then the maximum; or the lowest of as many as are wanted, or the lowest score that is wanted.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
from typing import Any, Callable, Iterable, Iterator, NamedTuple, Sequence

import numpy as np

from jittor_lora.inference.reader import BATCH_SIZE, Reader, Turn
from jittor_lora.inference.readers import reader_of
from jittor_lora.inference.sharing import Prompts, Queue
from jittor_lora.inference.smoothed_labels import before_smoothing
from jittor_lora.inference.steps import LOGITS, advance
from jittor_lora.inference.token_tree import Node
from jittor_lora.model.causal_lm import CausalLM

NODES_PER_PROMPT = 2  # read together
SLOTS = 4  # paths per prompt whose keys and values stay cached


class Found(NamedTuple):
    """What was found for a prompt.

    Args:
        spans: the best ones as ((start, end) in the context, score in nats), best first; fewer than wanted where there
            are no more, or none as probable as wanted.
        empty: the score of the empty answer: the log-probability of ending at once.
    """

    spans: list[tuple[tuple[int, int], float]]
    empty: float


class SpanGroup(NamedTuple):
    """Prompts with a common prefix, and the tree of their possible answers.

    Args:
        prefix: token ids, may be empty.
        prompts: the rest of each prompt, at least one token.
        tree: the root.
    """

    prefix: Sequence[int]
    prompts: Sequence[Sequence[int]]
    tree: Node


def best_spans(model: CausalLM, groups: Iterable[SpanGroup], ends: Sequence[int], batch_size: int = BATCH_SIZE,
               on_end: Callable[[int], None] = lambda index: None, count: int = 1,
               least_share: float = 0.0, reader: Reader | None = None, smoothing: float = 0.0) -> list[Found]:
    """The spans with the highest scores for each prompt.

    Args:
        groups: consumed lazily, since trees are large.
        ends: end tokens; the probability of the end is the sum of theirs.
        batch_size: most nodes read together.
        on_end: called with the number of a prompt, counted across all groups, when its spans are found.
        count: spans per prompt.
        least_share: only spans whose probability is more than this share of the best one's, 0 to less than 1.
        reader: see `reader_of`, the default.
        smoothing: of the labels that the model has learnt; scores are without it, see `before_smoothing`.

    Raises:
        UserError: a prompt that leaves no room for its spans within the model's positions, a token outside the
            vocabulary, or damaged weights.
    """
    reader = reader or reader_of(model)
    given = (Prompts(group.prefix, group.prompts, group.tree.deepest(), group.tree) for group in groups)
    queue, most = Queue(model, reader, given, SLOTS), max(1, batch_size // NODES_PER_PROMPT)
    results: dict[int, Found] = {}
    active: list[SpanSearch] = []
    while True:
        for index, group, unread, prompt, tree in queue.take(most - len(active)):
            search = SpanSearch(reader, index, prompt, tree, ends, count, least_share, smoothing)
            search.open(group, len(prompt) - 1 - len(unread))
            active.append(search)
        if not active:
            return [results[index] for index in range(len(results))]
        advance(active, sum(search.unread for search in active))
        for search in active:
            if search.complete:
                results[search.index] = search.found
                on_end(search.index)
        active = [search for search in active if not search.complete]


class SpanSearch:
    """The search for one prompt, a `Work`.

    Args:
        prompt: all its tokens; the last one is read first in each slot, those before it are the group's prefix.
        tree: the root.
        ends: end tokens.
        count: spans wanted.
        least_share, smoothing: see `best_spans`.
    """

    advancing = NODES_PER_PROMPT
    reads_all = False

    def __init__(self, reader: Reader, index: int, prompt: Sequence[int], tree: Node, ends: Sequence[int],
                 count: int = 1, least_share: float = 0.0, smoothing: float = 0.0):
        self.reader, self.index, self.prefix, self._last = reader, index, prompt[:-1], prompt[-1]
        self._ends, self._count, self._tree = np.asarray(sorted(ends), np.int64), count, tree
        self._smoothing, self._least = smoothing, math.log(least_share) if least_share else -math.inf
        self.group, self.read = None, 0
        self._slots: list[list[int]] = [[] for _ in range(SLOTS)]  # the tokens that each has read
        self._heap: list[tuple[float, int, Node]] = []  # unread nodes as (-bound, counter, node)
        self._counter = itertools.count()
        self._best: list[tuple[float, int, tuple[int, int]]] = []  # (-score, order, span), ascending
        self._turn: list[tuple[float, Node]] = []  # the nodes, with their bounds, whose logits the last turn yields
        self._empty = -np.inf
        self._push(0.0, tree)

    @property
    def rooms(self) -> list[int]:
        """Rows of the cache for each slot."""
        return [1 + self._tree.deepest()] * SLOTS

    @property
    def unread(self) -> int:
        return len(self.prefix) - self.read

    @property
    def complete(self) -> bool:
        return not (self._heap and -self._heap[0][0] > self._bar)

    @property
    def found(self) -> Found:
        return Found([(span, -score) for score, _, span in self._best], self._empty)

    def open(self, group: Any = None, read: int = 0) -> None:
        """See `Work`."""
        self.group = self.reader.open(len(self.prefix), self.rooms) if group is None else group
        self.read = read

    def turn(self, room: int) -> tuple[Turn, str]:
        left, start, self._turn = self.unread, self.read, []
        self.read += min(left, max(room, 0))
        if left > max(room, 0):
            return Turn(self.group, self.prefix[start : self.read], ()), LOGITS
        branches, free = [], list(range(SLOTS))
        while not self.complete and len(self._turn) < NODES_PER_PROMPT:
            bound, _, node = heapq.heappop(self._heap)
            self._turn.append((-bound, node))
            path = [self._last, *node.path()]
            # The slot with the longest common prefix; ties go to the one that loses least.
            slot = max(free, key=lambda i: (_common(self._slots[i], path), -len(self._slots[i])))
            free.remove(slot)
            kept = min(_common(self._slots[slot], path), len(path) - 1)
            self.reader.rewind(self.group, slot, kept)
            self._slots[slot] = path
            branches.append((slot, path[kept:]))
        return Turn(self.group, self.prefix[start : self.read], branches), LOGITS

    def take(self, results: Iterator[Any]) -> None:
        for bound, node in self._turn:
            self._expand(bound, node, next(results))

    @property
    def _bar(self) -> float:
        """What a span must exceed to be among the best."""
        if not self._best:
            return -np.inf
        last = -self._best[-1][0] if len(self._best) == self._count else -np.inf
        return max(last, self._least - self._best[0][0])

    def _expand(self, bound: float, node: Node, logits: np.ndarray) -> None:
        """Score the span that ends at a node and push the node's children, given the logits (V,) after it."""
        top = logits.max()
        total = np.log(np.exp(logits - top).sum(dtype=np.float64)) + top
        if node.span is not None or node.parent is None:
            ending = np.logaddexp.reduce(logits[self._ends].astype(np.float64)) - total
            whole = float(bound + before_smoothing(ending, self._smoothing, len(logits), len(self._ends)))
            if node.parent is None:
                self._empty = whole
            elif whole > self._bar:
                bisect.insort(self._best, (-whole, next(self._counter), node.span))
                del self._best[self._count :]
                while -self._best[-1][0] <= self._least - self._best[0][0]:  # the best one is new
                    del self._best[-1]
        if node.children:
            tokens = np.fromiter(node.children, np.int64, len(node.children))
            bounds = bound + before_smoothing(logits[tokens] - total, self._smoothing, len(logits))
            promising = bounds > self._bar
            for token, below in zip(tokens[promising].tolist(), bounds[promising].tolist()):
                self._push(below, node.children[token])

    def _push(self, bound: float, node: Node) -> None:
        heapq.heappush(self._heap, (-bound, next(self._counter), node))


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix."""
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
