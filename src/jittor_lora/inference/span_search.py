"""The likeliest of many possible continuations of a prompt, exactly.

A continuation's score is the sum of the log-probabilities of its tokens and of the end after them. A beginning's sum
bounds the scores of all continuations that begin so, as log-probabilities are not above zero. Beginnings are read best
first (Hart et al. 1968) until none is left whose bound is above the best whole score: that one is the largest of all.
"""

from __future__ import annotations

import heapq
import itertools
from typing import Callable, Iterable, NamedTuple, Optional, Sequence

import numpy as np

from jittor_lora.inference.reader import ROWS, Reader, Turn
from jittor_lora.inference.readers import reader_of
from jittor_lora.inference.sharing import Opened, Prompts, Queue
from jittor_lora.inference.token_tree import Node
from jittor_lora.model.causal_lm import CausalLM

AT_A_TIME = 2  # of one prompt
SLOTS = 4  # beginnings of one prompt whose keys and values are kept


class Found(NamedTuple):
    """The span, (start, end) in the context, and its score in nats; None and -inf where there is no span."""

    span: Optional[tuple[int, int]]
    score: float


class SpanGroup(NamedTuple):
    """Prompts that start with the same tokens, and the tree of what may follow any of them.

    Args:
        prefix: token ids, may be none.
        prompts: the rest of each prompt, one token or more.
        tree: its root.
    """

    prefix: Sequence[int]
    prompts: Sequence[Sequence[int]]
    tree: Node


def best_spans(model: CausalLM, groups: Iterable[SpanGroup], ends: Sequence[int], rows: int = ROWS,
               on_end: Callable[[int], None] = lambda index: None) -> list[Found]:
    """The span with the highest score after each prompt.

    Args:
        groups: taken as they are needed, since trees are large.
        ends: tokens, any of which ends an answer: the end's probability is the sum of theirs.
        rows: most beginnings that are read at a time.
        on_end: called with the number of a prompt, counted through all groups, when its span is found.

    Raises:
        UserError: a prompt that leaves no room for its spans within the model's positions, a token that the model does
            not have, or weights that are damaged.
    """
    reader = reader_of(model)
    given = (Prompts(group.prefix, group.prompts, group.tree.deepest(), group.tree) for group in groups)
    queue, most = Queue(model, reader, given, SLOTS), max(1, rows // AT_A_TIME)
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
                search.judge(bound, node, next(logits), ends)
        for search in active:
            if search.done:
                results[search.index] = Found(search.span, search.best)
                on_end(search.index)
        active = [search for search in active if not search.done]


class _Search:
    """What is known of the spans after one prompt: a heap of (-bound, number, node), beginnings that are not read yet;
    the tokens that each slot has read; and the best whole span so far."""

    def __init__(self, opened: Opened):
        self.index, self._group, self._unread = opened.index, opened.group, opened.unread
        self._last = opened.prompt[-1]
        self._slots: list[list[int]] = [[] for _ in range(SLOTS)]
        self._heap: list[tuple[float, int, Node]] = []
        self._number = itertools.count()
        self.span: Optional[tuple[int, int]] = None
        self.best = -np.inf
        self._push(0.0, opened.about)

    @property
    def done(self) -> bool:
        return not (self._heap and -self._heap[0][0] > self.best)

    def turn(self, reader: Reader) -> tuple[Turn, list[tuple[float, Node]]]:
        """What is read next, and the nodes whose logits that gives, with their bounds."""
        nodes, branches, free = [], [], list(range(SLOTS))
        while not self.done and len(nodes) < AT_A_TIME:
            bound, _, node = heapq.heappop(self._heap)
            nodes.append((-bound, node))
            path = [self._last, *node.path()]
            # The slot that has read most of it; of equal ones the one with the least to lose.
            slot = max(free, key=lambda i: (_common(self._slots[i], path), -len(self._slots[i])))
            free.remove(slot)
            kept = min(_common(self._slots[slot], path), len(path) - 1)
            reader.rewind(self._group, slot, kept)
            self._slots[slot] = path
            branches.append((slot, path[kept:]))
        turn, self._unread = Turn(self._group, self._unread, branches), ()
        return turn, nodes

    def judge(self, bound: float, node: Node, logits: np.ndarray, ends: np.ndarray) -> None:
        """Take the logits (V,) after a node."""
        top = logits.max()
        total = np.log(np.exp(logits - top).sum(dtype=np.float64)) + top
        if node.span is not None:
            whole = bound + np.logaddexp.reduce(logits[ends].astype(np.float64)) - total
            if whole > self.best:
                self.best, self.span = float(whole), node.span
        if node.children:
            tokens = np.fromiter(node.children, np.int64, len(node.children))
            bounds = bound + logits[tokens] - total
            for token, below in zip(tokens[bounds > self.best].tolist(), bounds[bounds > self.best].tolist()):
                self._push(below, node.children[token])

    def _push(self, bound: float, node: Node) -> None:
        heapq.heappush(self._heap, (-bound, next(self._number), node))


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens they begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
