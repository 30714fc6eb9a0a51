"""Choosing the next token from the logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np

from jittor_lora.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """Sampling settings.

    Args:
        temperature: divides the logits; 0 is greedy decoding.
        top_k: sample from the k likeliest tokens only; 0 for all.
        top_p: sample from the smallest set of likeliest tokens whose probabilities sum to at least this
            (Holtzman et al. 2020).
        repetition_penalty: divides the logits of earlier tokens if positive, multiplies them if negative
            (Keskar et al. 2019, section 4.1).
        min_p: drop tokens less likely than this fraction of the likeliest one (Nguyen et al. 2024); 0 keeps all.
        no_repeat_ngram: no n-gram of this length occurs twice, prompt included; 0 for no limit.
        min_new_tokens: end tokens are suppressed until the text has this many.
        seed: of the random streams.

    Raises:
        UserError: values out of range, all listed.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    min_p: float = 0.0
    no_repeat_ngram: int = 0
    min_new_tokens: int = 0
    seed: int = 0

    def __post_init__(self):
        checks = (
            ("temperature", self.temperature, 0 <= self.temperature < float("inf"), "a number of at least 0"),
            ("top_k", self.top_k, self.top_k >= 0, "a whole number of at least 0"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "a number above 0 and at most 1"),
            ("repetition_penalty", self.repetition_penalty, 0 < self.repetition_penalty < float("inf"),
             "a number above 0"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "a number from 0 to 1"),
            ("no_repeat_ngram", self.no_repeat_ngram, self.no_repeat_ngram >= 0, "a whole number of at least 0"),
            ("min_new_tokens", self.min_new_tokens, self.min_new_tokens >= 0, "a whole number of at least 0"),
            ("seed", self.seed, self.seed >= 0, "a whole number of at least 0"),
        )
        wrong = [f"{name}: expected {expected}, found {value}" for name, value, right, expected in checks if not right]
        if wrong:
            raise UserError("Sampling settings:\n  " + "\n  ".join(wrong))

    @property
    def constrains(self) -> bool:
        """Do the scores depend on earlier tokens?"""
        return self.repetition_penalty != 1.0 or self.no_repeat_ngram > 0 or self.min_new_tokens > 0

    @property
    def plain(self) -> bool:
        """Is the choice always the argmax of the unchanged logits?"""
        return self.temperature == 0 and not self.constrains


GREEDY = Sampling()


class Sampler:
    """Chooses the tokens of one text, with its own random stream.

    Args:
        number: of the text; it selects the random stream together with the seed.
        ends: the end tokens that `min_new_tokens` suppresses.
    """

    def __init__(self, settings: Sampling, number: int = 0, ends: Sequence[int] = ()):
        self.settings, self._ends = settings, np.asarray(ends, np.int64)
        self._draw = np.random.Generator(np.random.Philox(np.random.SeedSequence([settings.seed, number])))

    def choose(self, logits: np.ndarray, prompt: Sequence[int], new: Sequence[int] = ()) -> int:
        """A token from logits (V,); prompt and new tokens matter only if the settings `constrain`."""
        s = self.settings
        if s.constrains:
            logits = logits.copy()
            constrained(logits, s, prompt, new, self._ends)
        if s.temperature == 0:
            return int(logits.argmax())
        reached = np.cumsum(probabilities(logits, s))
        return int(np.searchsorted(reached, self._draw.random() * reached[-1], side="right"))


def constrained(scores: np.ndarray, settings: Sampling, prompt: Sequence[int], new: Sequence[int],
                ends: np.ndarray) -> None:
    """Apply the constraints in place to scores (V,), logits or log-probabilities, in transformers' order: repetition
    penalty, no repeated n-gram, minimum length.

    Args:
        prompt, new: the tokens so far.
        ends: (E,) end tokens.
    """
    if settings.repetition_penalty != 1.0:
        tokens = np.unique(np.asarray([*prompt, *new], np.int64))
        found = scores[tokens]
        scores[tokens] = np.where(found > 0, found / settings.repetition_penalty, found * settings.repetition_penalty)
    if settings.no_repeat_ngram:
        scores[_repeating([*prompt, *new], settings.no_repeat_ngram)] = -np.inf
    if len(new) < settings.min_new_tokens:
        scores[ends] = -np.inf


def _repeating(tokens: list[int], n: int) -> np.ndarray:
    """The tokens that would complete an n-gram which has occurred before."""
    before = tokens[len(tokens) - (n - 1) :] if n <= len(tokens) + 1 else None
    found = {tokens[i + n - 1] for i in range(len(tokens) - n + 1) if tokens[i : i + n - 1] == before}
    return np.fromiter(found, np.int64, len(found))


def probabilities(logits: np.ndarray, settings: Sampling) -> np.ndarray:
    """The distribution to sample from, (V,) float64: temperature, top-k, top-p and min-p, in transformers' order.

    All tokens tied with the k-th are kept.
    """
    scores = logits.astype(np.float64)
    scores = (scores - scores.max()) / settings.temperature  # at most 0: nothing overflows
    if 0 < settings.top_k < len(scores):
        scores[scores < np.partition(scores, -settings.top_k)[-settings.top_k]] = -np.inf
    odds = np.exp(scores)
    odds /= odds.sum()
    if settings.top_p < 1.0:
        order = np.argsort(odds, kind="stable")  # ascending
        odds[order[np.cumsum(odds[order]) <= 1.0 - settings.top_p][: len(odds) - 1]] = 0.0
        odds /= odds.sum()
    if settings.min_p > 0.0:
        odds[odds < settings.min_p * odds.max()] = 0.0
        odds /= odds.sum()
    return odds
