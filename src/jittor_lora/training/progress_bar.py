"""Progress of a run on the screen: a bar on a terminal, elsewhere a plain line now and then."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections import deque
from typing import TextIO

from tqdm import tqdm

from jittor_lora.system.pace import Pace

_WINDOW = 20  # steps over which the shown loss and rates are averaged
_PLAIN_LINE_SECONDS = 30.0


class ProgressBar:
    """Shows loss, tokens/s, questions/s, time left and peak memory. Loss and rates are means over the last 20 steps,
    without losses that are not finite.

    The time left is for the tokens still to be read, at the speed since the first step. The first step does not count,
    since operators may be compiled in it; the time is shown from the third step on.

    Args:
        total_steps: steps of the whole run, None if unknown.
        stream: where to write; None writes nothing.
        tokens_per_step: on average over the run; without it all steps count the same.
    """

    def __init__(self, total_steps: int | None, stream: TextIO | None, tokens_per_step: float | None = None):
        self._total = total_steps
        self._stream = stream
        self._tokens_per_step = tokens_per_step
        self._pace = Pace(clock=lambda: time.monotonic())
        self._first = 0
        self._bar: tqdm | None = None
        self._recent: deque[tuple[float, int, int, float]] = deque(maxlen=_WINDOW)
        self._shown = float("-inf")

    def start_at(self, step: int) -> None:
        """The run resumes after `step`."""
        self._first = step

    def step(self, step: int, loss: float, tokens: int, questions: int, seconds: float) -> None:
        """Optimiser step `step` is done; it read `tokens` and `questions` in `seconds`."""
        if self._stream is None:
            return
        self._recent.append((loss, tokens, questions, seconds))
        self._pace.note(tokens if self._tokens_per_step else 1)
        if self._stream.isatty():
            self._show_bar(step)
        elif step == self._total or time.monotonic() - self._shown >= _PLAIN_LINE_SECONDS:
            self._show_line(step)

    def write(self, text: str) -> None:
        """Write a separate line, above the bar if there is one."""
        if self._stream is not None:
            tqdm.write(text, file=self._stream)
            self._stream.flush()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _figures(self, units: tuple[str, str, str] = (" tokens/s", " questions/s", "peak ")) -> str:
        losses, tokens, questions, seconds = zip(*self._recent)
        seconds = max(sum(seconds), 1e-9)
        finite = [loss for loss in losses if math.isfinite(loss)]
        loss = sum(finite) / len(finite) if finite else math.nan
        return (f"loss {loss:.4g}, {sum(tokens) / seconds:,.0f}{units[0]}, "
                f"{sum(questions) / seconds:.1f}{units[1]}, {units[2]}{peak_memory_bytes() / 1e9:.1f} GB")

    def _left(self, step: int) -> str:
        return self._pace.left((self._total - step) * (self._tokens_per_step or 1)) if self._total else ""

    def _show_bar(self, step: int) -> None:
        if self._bar is None:
            self._bar = tqdm(total=self._total, initial=self._first, file=self._stream, dynamic_ncols=True, miniters=1,
                             bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
                             if self._total else "{n_fmt} steps [{elapsed}{postfix}]")
        figures = self._figures((" tok/s", " q/s", ""))  # within 80 columns
        self._bar.set_postfix_str(f"{self._left(step)}, {figures}"[2:], refresh=False)
        self._bar.update()

    def _show_line(self, step: int) -> None:
        self._shown = time.monotonic()
        of_total = f"/{self._total}" if self._total else ""
        self.write(f"step {step}{of_total}: {self._figures()}{self._left(step)}")


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far (`getrusage` counts in KiB, on macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
