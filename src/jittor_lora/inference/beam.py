"""Beam search with the results of transformers 5 (`GenerationMixin._beam_search`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Iterable, NamedTuple, Sequence

import numpy as np

from jittor_lora.inference.beam_settings import Beams
from jittor_lora.inference.reader import BATCH_SIZE, Reader, Turn
from jittor_lora.inference.readers import reader_of
from jittor_lora.inference.sampling import GREEDY, Sampling, constrained
from jittor_lora.inference.sharing import Opened, Prompts, Queue
from jittor_lora.model.causal_lm import CausalLM


class Hypothesis(NamedTuple):
    """A finished text: its tokens, including the one that ended it, and its score."""

    tokens: list[int]
    score: float


def search_groups(model: CausalLM, groups: Iterable[tuple[Sequence[int], Sequence[Sequence[int]]]], max_new_tokens: int,
                  beams: Beams, ends: Sequence[int], sampling: Sampling = GREEDY,
                  batch_size: int = BATCH_SIZE, on_end: Callable[[int], None] = lambda index: None,
                  reader: Reader | None = None) -> list[list[Hypothesis]]:
    """The best finished texts after each prompt, at most `beams.count`, best first.

    Args:
        groups: (prefix, prompts) pairs of token ids: the prompts' common prefix, and the rest of each.
        ends: tokens, each of which ends a text.
        sampling: only its constraints apply (see `constrained`); nothing is sampled.
        batch_size: most beams that advance together; the beams of one prompt always do.
        on_end: called with the number of a prompt when its search has ended.
        reader: see `reader_of`, the default.

    Raises:
        UserError: an empty prompt or one that exceeds the model's positions, a token outside the vocabulary, or
            damaged weights.
    """
    reader = reader or reader_of(model)
    given = (Prompts(prefix, prompts, _room(model, prefix, prompts, max_new_tokens)) for prefix, prompts in groups)
    queue, most = Queue(model, reader, given, beams.count), max(1, batch_size // beams.count)
    results: dict[int, list[Hypothesis]] = {}
    active: list[_Search] = []
    while True:
        active += [_Search(opened, max_new_tokens, model.config.max_positions, beams, ends, sampling)
                   for opened in queue.take(most - len(active))]
        if not active:
            return [results[index] for index in range(len(results))]
        turns = [search.turn(reader) for search in active]
        logits, first = reader.logits(turns), 0
        for search, turn in zip(active, turns):
            search.advance(logits[first : first + len(turn.branches)])
            first += len(turn.branches)
            if search.done:
                results[search.index] = search.finished
                on_end(search.index)
        active = [search for search in active if not search.done]


def _room(model: CausalLM, prefix: Sequence[int], prompts: Sequence[Sequence[int]], max_new_tokens: int) -> int:
    """Cache rows needed after the longest prompt; the last token of a text is never read."""
    longest = len(prefix) + max(map(len, prompts), default=0)
    return max(0, min(max_new_tokens - 1, model.config.max_positions - longest))


@dataclass
class _Beam:
    tokens: list[int]  # after the prompt
    score: float
    slot: int
    unread: list[int]


class _Search:
    """The search for one prompt."""

    def __init__(self, opened: Opened, max_new_tokens: int, positions: int, beams: Beams, ends: Sequence[int],
                 sampling: Sampling):
        self.index, self._group, self._unread = opened.index, opened.group, opened.unread
        self._prompt, self._beams, self._sampling = opened.prompt, beams, sampling
        self._ends, self._end_set = np.asarray(sorted(ends), np.int64), frozenset(ends)
        self._limit = min(max_new_tokens, positions - len(opened.prompt) + 1)
        self._running = [_Beam([], 0.0, 0, opened.prompt[-1:])]
        self.finished: list[Hypothesis] = []
        self.done = False

    def turn(self, reader: Reader) -> Turn:
        """What to read next. A beam with several continuations is copied for all but one of them."""
        held, free = set(), []
        for beam in self._running:
            if beam.slot in held:
                free.append(beam)
            held.add(beam.slot)
        spare = iter([slot for slot in range(self._beams.count) if slot not in held])
        for beam in free:
            source, beam.slot = beam.slot, next(spare)
            reader.copy(self._group, source, beam.slot)
        turn = Turn(self._group, self._unread, [(beam.slot, beam.unread) for beam in self._running])
        self._unread = ()
        return turn

    def advance(self, logits: np.ndarray) -> None:
        """Extend the running beams, given the logits (beams, V) after each."""
        count, length = self._beams.count, len(self._running[0].tokens) + 1
        scores = _log_softmax(logits)
        for row, beam in zip(scores, self._running):
            constrained(row, self._sampling, self._prompt, beam.tokens, self._ends)
            row += np.float32(beam.score)
        running: list[_Beam] = []
        full = len(self.finished) == count and self._beams.early_stopping is True
        for rank, at in enumerate(_largest(scores.ravel(), max(2, 1 + len(self._end_set)) * count)):
            parent, token = divmod(int(at), scores.shape[1])
            beam, score = self._running[parent], float(scores[parent, token])
            tokens = [*beam.tokens, token]
            if token not in self._end_set and length < self._limit:
                if len(running) < count:
                    running.append(_Beam(tokens, score, beam.slot, [token]))
            elif rank < count and not full:
                self.finished.append(Hypothesis(tokens, score / length**self._beams.length_penalty))
        self.finished = sorted(self.finished, key=lambda found: -found.score)[:count]
        self._running = running
        self.done = not running or not self._can_improve(length)

    def _can_improve(self, length: int) -> bool:
        beams = self._beams
        if len(self.finished) < beams.count:
            return True
        if beams.early_stopping is True:
            return False
        longest = self._limit if beams.early_stopping == "never" and beams.length_penalty > 0 else length
        return self._running[0].score / longest**beams.length_penalty > self.finished[-1].score


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """(M, V) float32."""
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True, dtype=np.float64)).astype(np.float32)


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the largest finite values in descending order; ties go to the lower index."""
    if count < len(values):
        least = np.partition(values, len(values) - count)[len(values) - count]
        where = np.flatnonzero(values >= least)
    else:
        where = np.arange(len(values))
    where = where[np.isfinite(values[where])]
    return where[np.argsort(-values[where], kind="stable")][:count]
