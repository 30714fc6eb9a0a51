"""Exact search for the likeliest of many possible answers.

An answer scores the log-probability of its tokens and of the end after them. Log-probabilities are never positive, so
the sum over the first tokens of an answer is an upper bound for all answers that start with them. Nodes of the token
tree are read best-first (A* with a zero heuristic, Hart et al. 1968) until no bound exceeds the best complete score,
which is then the maximum.
"""

from __future__ import annotations

import heapq
import itertools
from typing import Callable, Iterable, NamedTuple, Optional, Sequence

import numpy as np

from jittor_lora.inference.reader import BATCH_SIZE, Reader, Turn
from jittor_lora.inference.readers import reader_of
from jittor_lora.inference.sharing import Opened, Prompts, Queue
from jittor_lora.inference.token_tree import Node
from jittor_lora.model.causal_lm import CausalLM

NODES_PER_PROMPT = 2  # read together
SLOTS = 4  # paths per prompt whose keys and values stay cached


class Found(NamedTuple):
    """The best span as (start, end) in the context, and its score in nats; None and -inf if there is no span.
    `empty` is the score of the empty answer: the log-probability of ending at once."""

    span: Optional[tuple[int, int]]
    score: float
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
               on_end: Callable[[int], None] = lambda index: None) -> list[Found]:
    """The span with the highest score for each prompt.

    Args:
        groups: consumed lazily, since trees are large.
        ends: end tokens; the probability of the end is the sum of theirs.
        batch_size: most nodes read together.
        on_end: called with the number of a prompt, counted across all groups, when its span is found.

    Raises:
        UserError: a prompt that leaves no room for its spans within the model's positions, a token outside the
            vocabulary, or damaged weights.
    """
    reader = reader_of(model)
    given = (Prompts(group.prefix, group.prompts, group.tree.deepest(), group.tree) for group in groups)
    queue, most = Queue(model, reader, given, SLOTS), max(1, batch_size // NODES_PER_PROMPT)
    ends, results = np.asarray(sorted(ends), np.int64), {}
    active: list[_Search] = []
    while True:
        active += [_Search(opened) for opened in queue.take(most - len(active))]
        if not active:
            return [results[index] for index in range(len(results))]
        turns, read = [], []
        for search in active:
            turn, nodes = search.turn(reader)
            turns.append(turn)
            read.append(nodes)
        logits = iter(reader.logits(turns))
        for search, nodes in zip(active, read):
            for bound, node in nodes:
                search.expand(bound, node, next(logits), ends)
        for search in active:
            if search.done:
                results[search.index] = Found(search.span, search.best, search.empty)
                on_end(search.index)
        active = [search for search in active if not search.done]


class _Search:
    """The search for one prompt: a heap of unread nodes as (-bound, counter, node), the tokens each slot has read, and
    the best complete span so far."""

    def __init__(self, opened: Opened):
        self.index, self._group, self._unread = opened.index, opened.group, opened.unread
        self._last = opened.prompt[-1]
        self._slots: list[list[int]] = [[] for _ in range(SLOTS)]
        self._heap: list[tuple[float, int, Node]] = []
        self._counter = itertools.count()
        self.span: Optional[tuple[int, int]] = None
        self.best = self.empty = -np.inf
        self._push(0.0, opened.payload)

    @property
    def done(self) -> bool:
        return not (self._heap and -self._heap[0][0] > self.best)

    def turn(self, reader: Reader) -> tuple[Turn, list[tuple[float, Node]]]:
        """What to read next, and the nodes, with their bounds, whose logits that yields."""
        nodes, branches, free = [], [], list(range(SLOTS))
        while not self.done and len(nodes) < NODES_PER_PROMPT:
            bound, _, node = heapq.heappop(self._heap)
            nodes.append((-bound, node))
            path = [self._last, *node.path()]
            # The slot with the longest common prefix; ties go to the one that loses least.
            slot = max(free, key=lambda i: (_common(self._slots[i], path), -len(self._slots[i])))
            free.remove(slot)
            kept = min(_common(self._slots[slot], path), len(path) - 1)
            reader.rewind(self._group, slot, kept)
            self._slots[slot] = path
            branches.append((slot, path[kept:]))
        turn, self._unread = Turn(self._group, self._unread, branches), ()
        return turn, nodes

    def expand(self, bound: float, node: Node, logits: np.ndarray, ends: np.ndarray) -> None:
        """Score the span that ends at a node and push the node's children, given the logits (V,) after it."""
        top = logits.max()
        total = np.log(np.exp(logits - top).sum(dtype=np.float64)) + top
        if node.span is not None or node.parent is None:
            whole = float(bound + np.logaddexp.reduce(logits[ends].astype(np.float64)) - total)
            if node.parent is None:
                self.empty = whole
            elif whole > self.best:
                self.best, self.span = whole, node.span
        if node.children:
            tokens = np.fromiter(node.children, np.int64, len(node.children))
            bounds = bound + logits[tokens] - total
            for token, below in zip(tokens[bounds > self.best].tolist(), bounds[bounds > self.best].tolist()):
                self._push(below, node.children[token])

    def _push(self, bound: float, node: Node) -> None:
        heapq.heappush(self._heap, (-bound, next(self._counter), node))


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix."""
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
