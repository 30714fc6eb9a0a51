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
        seed: of the draws.

    Raises:
        UserError: values out of range; all are listed.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self):
        checks = (
            ("temperature", self.temperature, 0 <= self.temperature < float("inf"), "a number of at least 0"),
            ("top_k", self.top_k, self.top_k >= 0, "a whole number of at least 0"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "a number above 0 and at most 1"),
            ("repetition_penalty", self.repetition_penalty, 0 < self.repetition_penalty < float("inf"),
             "a number above 0"),
            ("seed", self.seed, self.seed >= 0, "a whole number of at least 0"),
        )
        wrong = [f"{name}: expected {expected}, found {value}" for name, value, right, expected in checks if not right]
        if wrong:
            raise UserError("Sampling settings:\n  " + "\n  ".join(wrong))


class Sampler:
    """Chooses the tokens of one text, drawing from a stream of random numbers of its own.

    Args:
        number: of the text; it decides the stream together with the seed.
    """

    def __init__(self, settings: Sampling, number: int = 0):
        self.settings = settings
        self._draw = np.random.Generator(np.random.Philox(np.random.SeedSequence([settings.seed, number])))

    def choose(self, logits: np.ndarray, seen: Sequence[int]) -> int:
        """A token from logits (V,), given the tokens before it."""
        s = self.settings
        if s.repetition_penalty != 1.0 and len(seen):
            logits = logits.copy()
            tokens = np.unique(np.asarray(seen))
            scores = logits[tokens]
            logits[tokens] = np.where(scores > 0, scores / s.repetition_penalty, scores * s.repetition_penalty)
        if s.temperature == 0:
            return int(logits.argmax())
        reached = np.cumsum(probabilities(logits, s))
        return int(np.searchsorted(reached, self._draw.random() * reached[-1], side="right"))


def probabilities(logits: np.ndarray, settings: Sampling) -> np.ndarray:
    """(V,) → the distribution that is drawn from, float64: temperature, then top-k, then top-p, as transformers does.

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
    return odds
