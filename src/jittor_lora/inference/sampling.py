"""How the next token is chosen from the logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np

from jittor_lora.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """Settings of the choice.

    Args:
        temperature: logits are divided by it; 0 takes the likeliest token (greedy).
        top_k: only so many likeliest tokens can be drawn; 0 for all.
        top_p: only the fewest likeliest tokens whose probabilities sum to at least this (Holtzman et al. 2020).
        repetition_penalty: logits of tokens seen before are divided by it if positive, else multiplied
            (Keskar et al. 2019, section 4.1).
        min_p: only tokens whose probability is at least this share of the likeliest one's (Nguyen et al. 2024); 0 for
            all.
        no_repeat_ngram: so many tokens in a row never occur twice, those of the prompt counted; 0 for no limit.
        min_new_tokens: the text does not end before so many tokens.
        seed: of the draws.

    Raises:
        UserError: values out of range; all are listed.
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
        """Is any token made more or less likely for what was before it?"""
        return self.repetition_penalty != 1.0 or self.no_repeat_ngram > 0 or self.min_new_tokens > 0

    @property
    def plain(self) -> bool:
        """Is it always the token with the largest logit?"""
        return self.temperature == 0 and not self.constrains


class Sampler:
    """Chooses the tokens of one text, drawing from a stream of random numbers of its own.

    Args:
        number: of the text; it decides the stream together with the seed.
        ends: tokens that end a text, which `min_new_tokens` is about.
    """

    def __init__(self, settings: Sampling, number: int = 0, ends: Sequence[int] = ()):
        self.settings, self._ends = settings, np.asarray(ends, np.int64)
        self._draw = np.random.Generator(np.random.Philox(np.random.SeedSequence([settings.seed, number])))

    def choose(self, logits: np.ndarray, prompt: Sequence[int], new: Sequence[int] = ()) -> int:
        """A token from logits (V,), given the prompt and the tokens after it; they are looked at if `constrains`."""
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
    """Change scores (V,), logits or log-probabilities, as the constraints want it: repetition penalty, then no n-gram
    twice, then no end too early, in the order and the way of transformers.

    Args:
        prompt, new: the tokens so far.
        ends: (E,) tokens that end a text.
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
    """The tokens with which the last n - 1 would be an n-gram that is there already."""
    before = tokens[len(tokens) - (n - 1) :] if n <= len(tokens) + 1 else None
    found = {tokens[i + n - 1] for i in range(len(tokens) - n + 1) if tokens[i : i + n - 1] == before}
    return np.fromiter(found, np.int64, len(found))


def probabilities(logits: np.ndarray, settings: Sampling) -> np.ndarray:
    """(V,) → the distribution that is drawn from, float64: temperature, top-k, top-p, min-p, as transformers does.

    Every token whose logit equals the k-th is kept.
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
