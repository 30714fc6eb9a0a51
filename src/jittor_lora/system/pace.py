"""Estimates the remaining time of a task from its speed so far."""

from __future__ import annotations

import time
from typing import Callable


class Pace:
    """The speed of work in steps of different sizes.

    Args:
        apart: number of first steps not counted, because they also compile, read and pack.
        least: number of counted steps before there is an estimate.
        clock: returns seconds.
    """

    def __init__(self, apart: int = 1, least: int = 2, clock: Callable[[], float] = time.monotonic):
        self._apart, self._least, self._clock = apart, least, clock
        self._steps, self._amount = 0, 0.0
        self._started = self._now = clock()

    def note(self, amount: float = 1.0) -> None:
        """Record a finished step of this size, in any unit."""
        self._steps, self._now = self._steps + 1, self._clock()
        if self._steps <= self._apart:
            self._started = self._now
        else:
            self._amount += amount

    def seconds_for(self, amount: float) -> float | None:
        """The time for work of this size, None while it is too early to say."""
        if self._steps < self._apart + self._least or not self._amount:
            return None
        return amount * (self._now - self._started) / self._amount

    def left(self, amount: float) -> str:
        """", 03:20 left", or "" while it is too early to say."""
        seconds = self.seconds_for(amount)
        return "" if seconds is None else f", {interval(seconds)} left"


def interval(seconds: float) -> str:
    """Minutes and seconds, with hours if any: 03:20, 1:03:20."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
