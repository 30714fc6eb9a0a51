"""Puts the losses of a log on one axis: by the steps, epochs, … that it names, otherwise in log order."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jittor_lora.evaluation.logs.entries import Entry, Place
from jittor_lora.evaluation.logs.names import BATCH, EPOCH, FRACTION, ITERATION, PLACES, STEP

ORDER = "order"  # the axis if no unit is named
# A script that prints "step 20: val loss" between "iter 10: loss" and "iter 20: loss" means the same count.
_SYNONYMS = {STEP: ITERATION, ITERATION: STEP}
_LOCAL = (BATCH, FRACTION)  # in validation lines, these count validation batches


class Point(NamedTuple):
    """A loss at its place on the axis; `entry` is the index of its entry in the log."""

    entry: int
    at: float
    loss: float


class Axis(NamedTuple):
    """Training and validation points on the axis `unit`, one of `names.PLACES` or ORDER. `notes` say how they were put
    there, and how many losses were left out because their place is unknown."""

    unit: str
    train: list[Point]
    validation: list[Point]
    notes: list[str]


def axis_of(entries: Sequence[Entry], train: Sequence[tuple[int, float]],
            validation: Sequence[tuple[int, float]]) -> Axis:
    """Places the losses of one run.

    Args:
        train, validation: (index of the entry, loss), in log order.
    """
    notes: list[str] = []
    unit = _unit([entries[number] for number, _ in train]) or _unit([entries[number] for number, _ in validation]) \
        or ORDER
    placed = _Placed(unit)
    merged = sorted([(number, 0, loss) for number, loss in train] + [(number, 1, loss) for number, loss in validation],
                    key=lambda loss: loss[:2])
    named = [_place(entries[number], unit) for number, _ in validation]
    follows = 2 * sum(place is not None for place in named) < len(named)  # validation goes where training is
    for number, is_validation, loss in merged:
        if is_validation:
            placed.validate(number, None if follows else _place(entries[number], unit), loss, follows)
        else:
            placed.train_at(number, entries[number].places, loss)
    points = _spread(placed.train) if unit == EPOCH else _last_of_each(placed.train, notes, "training")
    checks = _beside(placed.validation, points, notes) if follows and points else placed.validation
    if follows and not points:
        checks = [point._replace(at=index) for index, point in enumerate(placed.validation, 1)]
    return Axis(unit, points, _last_of_each(sorted(checks, key=lambda point: point.at), notes, "validation"),
                placed.notes() + notes)


def _unit(entries: Sequence[Entry]) -> str | None:
    """The unit that at least half of the entries name, with the fewest repeats if there are several; else None."""
    found = []
    for rank, unit in enumerate(PLACES):
        values = [entry.places[unit].value for entry in entries if unit in entry.places]
        if values and 2 * len(values) >= len(entries):
            found.append((sum(value == following for value, following in zip(values, values[1:])), rank, unit))
    return min(found)[2] if found else None


def _place(entry: Entry, unit: str) -> Place | None:
    """The place that a validation loss names."""
    if unit in _LOCAL:
        return None
    return entry.places.get(unit) or (entry.places.get(_SYNONYMS[unit]) if unit in _SYNONYMS else None)


class _Placed:
    """Collects points in log order. When a count falls back, either it restarted (a new epoch, an appended run) and
    numbering continues, or the run went back to a checkpoint and redid what came after it."""

    def __init__(self, unit: str):
        self.unit = unit
        self.train: list[Point] = []
        self.validation: list[Point] = []
        self._offset = 0.0
        self._stretch: list[float] = []  # increasing places since the last restart
        self._total: float | None = None
        self._epoch: Place | None = None
        self._restarts = self._redone = self._unplaced = 0

    def train_at(self, number: int, places: Mapping[str, Place], loss: float) -> None:
        if self.unit == ORDER:
            self.train.append(Point(number, float(len(self.train) + 1), loss))
            return
        place, epoch = places.get(self.unit), places.get(EPOCH)
        if place is None:
            self._unplaced += 1
            return
        new_bar = self.unit in _LOCAL and epoch != self._epoch  # if only the end of each bar was kept
        if self._stretch and (place.value < self._stretch[-1] or (new_bar and place.value == self._stretch[-1])):
            self._fall_back(place.value)
        self._stretch.append(place.value)
        self._total, self._epoch = place.total, epoch
        self.train.append(Point(number, self._offset + place.value, loss))

    def validate(self, number: int, place: Place | None, loss: float, follows: bool) -> None:
        if place is None and not follows:
            self._unplaced += 1
            return
        at = math.nan if place is None else self._offset + place.value
        self.validation.append(Point(number, at, loss))

    def _fall_back(self, value: float) -> None:
        index = bisect.bisect_left(self._stretch, value)
        resumed = index > 0 and self._stretch[index] == value and self.unit not in _LOCAL
        if resumed:
            at = self._offset + value
            first = len(self.train) - (len(self._stretch) - index)
            entry = self.train[first].entry
            kept = [point for point in self.validation
                    if point.at < at or (math.isnan(point.at) and point.entry < entry)]
            self._redone += len(self.train) - first + len(self.validation) - len(kept)
            self.validation = kept
            del self.train[first:], self._stretch[index:]
            return
        self._restarts += 1
        length = math.ceil(self._stretch[-1]) + (self._stretch[0] == 0)
        self._offset += max(length, self._total or 0)
        self._stretch = []

    def notes(self) -> list[str]:
        notes = []
        if self._restarts:
            notes.append(f"its {_plural(self.unit)} restart {_times(self._restarts)} (a new epoch, or another run in "
                         "the same file); numbering continues from there")
        if self._redone:
            notes.append(f"{_left_out(self._redone)}: the run went back to an earlier {self.unit} and redid that part")
        if self._unplaced:
            notes.append(f"{_left_out(self._unplaced)}: no {self.unit} given")
        return notes


def _spread(points: list[Point]) -> list[Point]:
    """Spreads losses of the same epoch, which may be rounded, evenly up to the next epoch."""
    spread: list[Point] = []
    start, gap = 0, 1.0
    while start < len(points):
        end = start
        while end < len(points) and points[end].at == points[start].at:
            end += 1
        gap = points[end].at - points[start].at if end < len(points) else gap
        spread += [point._replace(at=point.at + gap * index / (end - start))
                   for index, point in enumerate(points[start:end])]
        start = end
    return spread


def _last_of_each(points: list[Point], notes: list[str], what: str) -> list[Point]:
    """Keeps the last point at each place: a redrawn progress bar repeats itself."""
    kept: list[Point] = []
    replaced = 0
    for point in points:
        if kept and kept[-1].at == point.at:
            replaced += kept[-1].loss != point.loss
            kept[-1] = point
        else:
            kept.append(point)
    if replaced:
        notes.append(f"{_left_out(replaced, f'{what} ')}: replaced by a later loss at the same place")
    return kept


def _beside(validation: list[Point], train: list[Point], notes: list[str]) -> list[Point]:
    """Places validation losses that name no place at the training loss before them; if all come after the training,
    spreads them over it."""
    if len(validation) > 1 and validation[0].entry > train[-1].entry:
        notes.append("its validation losses all come after the training losses and name no step; they are spread "
                     "evenly over the training")
        return [point._replace(at=train[-1].at * index / len(validation)) for index, point in enumerate(validation, 1)]
    entries = [point.entry for point in train]
    return [point._replace(at=train[max(0, bisect.bisect_right(entries, point.entry) - 1)].at) for point in validation]


def _left_out(count: int, what: str = "") -> str:
    return f"1 {what}loss is left out" if count == 1 else f"{count:,} {what}losses are left out"


def _plural(unit: str) -> str:
    return unit + ("es" if unit == BATCH else "s")


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"
