"""Values by step in a limited number of points, however many steps there are."""

from __future__ import annotations

import math
from typing import Any, Mapping, Optional, Sequence


class Thinned:
    """Values by increasing step in at most `most` points; a point is the mean over `stride` steps, a power of two.

    Args:
        most: two or more, as step 0 is a point of its own: what was measured before training.

    Attributes:
        last: the last step; -1 before the first.
        not_finite: number of values left out.
    """

    def __init__(self, names: Sequence[str], most: int):
        if most < 2:
            raise ValueError(f"most: expected 2 or more, found {most}")
        self.names, self._most = names, most
        self.stride, self.last, self.not_finite = 1, -1, 0
        self._points: list[_Point] = []

    def add(self, step: int, row: Mapping[str, Any]) -> bool:
        """Add the values of a step; False, and nothing is added, if it is not after the last."""
        if step <= self.last:
            return False
        self.last, index = step, (step - 1) // self.stride
        if not self._points or self._points[-1].index != index:
            self._points.append(_Point(index, len(self.names)))
            self._thin()
        self.not_finite += self._points[-1].add(step, [row.get(name, "") for name in self.names])
        return True

    def after(self, since: int) -> tuple[list[int], dict[str, list[Optional[float]]]]:
        """The last steps and the means of all points that end after step `since`."""
        points = [point for point in self._points if point.step > since]
        means = {name: [point.mean(i) for point in points] for i, name in enumerate(self.names)}
        return [point.step for point in points], means

    @property
    def complete(self) -> int:
        """The end of the last point that no later step will change."""
        if not self._points:
            return 0
        if self.last % self.stride == 0:
            return self.last
        return self._points[-2].step if len(self._points) > 1 else 0

    def _thin(self) -> None:
        while len(self._points) > self._most:
            self.stride *= 2
            merged: list[_Point] = []
            for point in self._points:
                point.index //= 2
                if merged and merged[-1].index == point.index:
                    merged[-1].merge(point)
                else:
                    merged.append(point)
            self._points = merged


class _Point:
    """Sums over some steps."""

    __slots__ = ("index", "step", "sums", "counts")

    def __init__(self, index: int, values: int):
        self.index, self.step, self.sums, self.counts = index, 0, [0.0] * values, [0] * values

    def add(self, step: int, values: Sequence[Any]) -> int:
        """Returns: how many values are not finite; null is such a one, and what is no number counts as missing."""
        self.step, wrong = step, 0
        for i, value in enumerate(values):
            if value is None or type(value) in (int, float):
                if value is not None and math.isfinite(value):
                    self.sums[i] += value
                    self.counts[i] += 1
                else:
                    wrong += 1
        return wrong

    def merge(self, later: _Point) -> None:
        self.step = later.step
        self.sums = [a + b for a, b in zip(self.sums, later.sums)]
        self.counts = [a + b for a, b in zip(self.counts, later.counts)]

    def mean(self, i: int) -> Optional[float]:
        mean = self.sums[i] / self.counts[i] if self.counts[i] else math.nan
        return mean if math.isfinite(mean) else None
