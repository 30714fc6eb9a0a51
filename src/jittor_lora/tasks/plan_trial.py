"""The steps that a plan takes to measure time and memory. They leave the trained values as they were."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Optional, TypeVar

from jittor_lora.formats.training_state import Copies, TrainingState, write_state
from jittor_lora.inference.generator import Generator
from jittor_lora.system import memory
from jittor_lora.system.runtime import free_memory
from jittor_lora.tasks.answering import answer
from jittor_lora.tasks.plan_work import Piece, Step, Work
from jittor_lora.tasks.questions import Questions
from jittor_lora.tasks.train import Prepared
from jittor_lora.training.batches import streams_of
from jittor_lora.training.gradients import mean_loss
from jittor_lora.training.optimizer import clip_scale
from jittor_lora.training.step import Computation

LEAST_STEPS, MOST_STEPS, ENOUGH_SECONDS = 2, 8, 10.0
APART = 1.5  # the least ratio of the lengths of two streams that show a slope
SAMPLE_BYTES = 64 << 20  # of a checkpoint that is written to measure how fast that is
Value = TypeVar("Value")


class Speed(NamedTuple):
    """Of optimiser steps: gradients take time by their rows, an update is the same in each step."""

    seconds_per_row: float
    seconds_per_update: float
    steps: int


class Line(NamedTuple):
    """Bytes of activations by rows of a stream."""

    start: float
    per_row: float

    @classmethod
    def through(cls, small: tuple[int, int], larger: tuple[int, int]) -> Line:
        """The line through two measurements, each (rows, bytes), with an intercept of at least 0 bytes.

        Between streams of similar length a slope would show little but noise, so bytes are then taken to be
        proportional to rows. The line always passes through the measurement of the longer stream.
        """
        (rows, taken), (more_rows, more_taken) = small, larger
        per_row = more_taken / more_rows
        if more_rows >= APART * rows:
            per_row = min(per_row, max(0, more_taken - taken) / (more_rows - rows))
        return cls(more_taken - per_row * more_rows, per_row)

    def at(self, rows: int) -> int:
        return round(self.start + self.per_row * rows)

    def rows_for(self, room: int) -> int:
        """The most rows whose activations take at most `room` bytes."""
        return max(0, int((room - self.start) / max(self.per_row, 1.0)))


class Trial:
    """Runs parts of a run that is ready, and measures them."""

    def __init__(self, ready: Prepared, work: Work):
        self._ready, self._work = ready, work
        self._compute = Computation(ready.session.model, ready.method.trainable, ready.config)
        pieces = work.pieces
        self._small, self._middle = pieces[0], pieces[len(pieces) // 2]

    def warm_up(self) -> tuple[int, float]:
        """Compile operators and pack weights, on the shortest stream.

        Returns: bytes of this process before a step, and seconds that are needed once.
        """
        first, second = (_timed(lambda: self._step(0, self._small.groups))[1] for _ in range(2))
        return _resting(), max(0.0, first - second)

    def activations(self, room: int) -> tuple[int, bool]:
        """Bytes that the longest stream takes, and whether they are measured: only if it is expected to fit."""
        longest = self._work.longest
        estimate = self.line(self._ready.config.activation_checkpointing)[0].at(longest.rows)
        return (self._taken(longest)[0], True) if estimate <= room else (estimate, False)

    def line(self, checkpointing: bool) -> tuple[Line, float]:
        """Memory by rows with or without activation checkpointing, from two streams of moderate length, and the time
        as a multiple of that with the run's settings."""
        model = self._ready.session.model
        before = model.activation_checkpointing
        usual = self._taken(self._small)[1] if checkpointing != before else 1.0
        model.activation_checkpointing = checkpointing
        try:
            if checkpointing != before:
                self._step(0, self._small.groups)  # compiles
            short, seconds = self._taken(self._small)
            line = Line.through((self._small.rows, short), (self._middle.rows, self._taken(self._middle)[0]))
            return line, seconds / usual if checkpointing != before else 1.0
        finally:
            model.activation_checkpointing = before

    def steps(self) -> Speed:
        """Real steps, of every length in turn."""
        return self._speed(itertools.cycle(self._in_turn()))

    def small_steps(self) -> Speed:
        """Steps of one stream each, shorter than those of the run, where the longest does not fit."""
        return self._speed(itertools.cycle(Step(0, piece.groups, [piece]) for piece in (self._small, self._middle)))

    def validation(self, questions: Optional[Questions], asked: int) -> float:
        """Seconds of one validation.

        Args:
            questions: some of the `asked` ones that it answers.
        """
        model = self._ready.session.model
        streams = streams_of(self._ready.dev_groups, self._ready.config)
        mean_loss(model, streams[:1])
        some = streams[-3:]
        seconds = _timed(lambda: mean_loss(model, some))[1]
        seconds *= self._work.dev_rows / sum(len(stream.tokens) for stream in some)
        if questions is not None:
            generator = Generator(model, self._ready.session.tokenizer)
            seconds += _timed(lambda: answer(generator, questions))[1] * asked / len(questions.ids)
        return seconds

    def saving(self, size: int) -> float:
        """Seconds to write a checkpoint of this size."""
        arrays = Copies(self._ready.optimizer.moments())
        sizes = itertools.accumulate(4 * array.numel() for array in self._ready.optimizer.moments().values())
        some = {name: arrays[name] for name, end in zip(arrays, sizes) if end <= SAMPLE_BYTES} or dict(
            [next(iter(arrays.items()))])
        written = sum(array.nbytes for array in some.values())
        with tempfile.TemporaryDirectory() as folder:
            seconds = _timed(lambda: write_state(Path(folder), 0, TrainingState(some, {}), 1))[1]
        return seconds * size / written

    def _in_turn(self) -> Iterator[Step]:
        """The counted steps, those in the middle of equal parts first: with lengths in order, any beginning of this
        has about their mean."""
        steps = sorted(self._work.counted, key=lambda step: step.rows)
        seen = set()
        for parts in itertools.takewhile(lambda parts: parts < 4 * len(steps), (2**k for k in itertools.count(1))):
            for part in range(parts):
                at = (2 * part + 1) * len(steps) // (2 * parts)
                if at not in seen:
                    seen.add(at)
                    yield steps[at]

    def _speed(self, steps: Iterator[Step]) -> Speed:
        rows, gradients, updates, count = 0, 0.0, 0.0, 0
        for step in steps:
            computing, updating = self._step(step.number, step.batch)
            rows, gradients, updates, count = rows + step.rows, gradients + computing, updates + updating, count + 1
            if count >= MOST_STEPS or count >= LEAST_STEPS and gradients + updates > ENOUGH_SECONDS:
                break
        return Speed(gradients / rows, updates / count, count)

    def _taken(self, piece: Piece) -> tuple[int, float]:
        """Bytes of memory beyond what this process has, and seconds, of a step on one stream."""
        before = _resting()
        memory.reset_peak()
        seconds = _timed(lambda: self._step(0, piece.groups))[1]
        return max(0, memory.peak() - before), seconds

    def _step(self, number: int, batch) -> tuple[float, float]:
        """Seconds for the gradients, and for the update, at a learning rate of zero."""
        step, computing = _timed(lambda: self._compute.step(number, batch))
        scale = clip_scale(step.norm, self._ready.config.max_grad_norm)
        return computing, _timed(lambda: self._ready.optimizer.step(step.gradients, 0.0, scale))[1]


def _resting() -> int:
    """Bytes of this process between steps."""
    free_memory()
    memory.trim()
    return memory.resident()


def _timed(call: Callable[[], Value]) -> tuple[Value, float]:
    started = time.perf_counter()
    value = call()
    return value, time.perf_counter() - started
