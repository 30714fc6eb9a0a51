"""The engine: one thread that computes, for all requests together."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Optional

from jittor_lora.errors import UserError
from jittor_lora.inference.readers import readers_of
from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.serving.jobs import (
    Busy,
    Deliver,
    Done,
    End,
    Extraction,
    Failed,
    Generation,
    Job,
    Piece,
    Spans,
    Stopping,
)


@dataclass(frozen=True)
class EngineLimits:
    """
    Args:
        batch_size: most texts that advance together.
        waiting: most jobs that wait.
        cache_bytes: of keys and values kept for prefixes that come again; 0 keeps none.
        seconds: most time for a job, from `submit` on; None for no limit.
        read_tokens: most tokens of prompts that are read in one step.
    """

    batch_size: int = 64
    waiting: int = 256
    cache_bytes: int = 1 << 30
    seconds: Optional[float] = None
    read_tokens: int = 256


@dataclass(frozen=True)
class Statistics:
    """Counts since the start, but for the first three and the last two.

    Args:
        running, waiting: jobs.
        texts: that advance together now.
        done, cancelled, failed: jobs.
        prompt_tokens, cached_tokens, completion_tokens: as in `Done`.
        steps: calls of the model.
        cache_bytes, cache_limit: of the prefix cache.
    """

    running: int = 0
    waiting: int = 0
    texts: int = 0
    done: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    steps: int = 0
    cache_bytes: int = 0
    cache_limit: int = 0


class Ticket:
    """A job that was submitted."""

    def __init__(self, job: Job, deliver: Deliver):
        self.job, self.deliver, self.cancelled = job, deliver, threading.Event()

    def cancel(self) -> None:
        """Stop at the next step; nothing is delivered after it. May be called from any thread, and again."""
        self.cancelled.set()


class Engine:
    """Computes jobs in the thread that calls `run`; every other method may be called from any thread.

    Texts are bit for bit those of `Generator` and `Extractor` alone, whatever else is computed with them.
    """

    def __init__(self, model: CausalLM, limits: EngineLimits = EngineLimits()):
        self._model, self.limits = model, limits
        self._inbox: queue.Queue = queue.Queue()
        self._stopping = False

    def submit(self, job: Job, deliver: Deliver) -> Ticket:
        """Put a job in the queue. `deliver` is called in the computing thread, once per step with all new events; the
        last event is `Done` or `Failed`. It must not block.

        Raises:
            Busy: too many jobs wait.
            Stopping: `stop` was called.
        """
        if self._stopping:
            raise Stopping
        if self._inbox.qsize() >= self.limits.waiting:
            raise Busy(1)
        ticket = Ticket(job, deliver)
        self._inbox.put(ticket)
        return ticket

    def call(self, function: Callable[[], Any]) -> Future:
        """Call a function in the computing thread between two steps, such as one that loads an adapter."""
        future: Future = Future()
        self._inbox.put((function, future))
        return future

    def forget(self, adapter: str) -> None:
        """Drop what is kept of an adapter; to be called through `call`, when it is loaded or unloaded."""

    def stop(self, seconds: float) -> None:
        """Take no more jobs, and let `run` return once all are done, after `seconds` at the latest."""
        self._stopping = True
        self._inbox.put(None)

    def statistics(self) -> Statistics:
        return Statistics(waiting=self._inbox.qsize())

    def run(self) -> None:
        """Compute until `stop`."""
        while True:
            item = self._inbox.get()
            if item is None:
                return
            if isinstance(item, Ticket):
                self._work(item)
            else:
                function, future = item
                try:
                    future.set_result(function())
                except BaseException as error:
                    future.set_exception(error)

    def _work(self, ticket: Ticket) -> None:  # one after the other: a stand-in
        job = ticket.job
        try:
            if isinstance(job, Generation):
                self._generate(job, ticket)
            else:
                self._extract(job, ticket)
        except UserError as error:
            ticket.deliver([Failed(str(error), "request")])

    def _generate(self, job: Generation, ticket: Ticket) -> None:
        repeated = [(prefix, [p for p in prompts for _ in range(job.count)]) for prefix, prompts in job.groups]
        adapters = [job.adapter] * len(repeated)
        texts = job.generator.continue_groups(
            repeated, job.decoding, job.trim, adapters=adapters,
            on_text=lambda i, text: ticket.deliver([Piece(i, text)]) if text else None)
        ticket.deliver([End(i, "stop", 1) for i in range(len(texts))]
                       + [Done(sum(len(p) + len(b) for p, bs in repeated for b in bs), 0, len(texts))])

    def _extract(self, job: Extraction, ticket: Ticket) -> None:
        readers_of(self._model, [job.adapter])
        found = job.extractor.extract(job.groups, job.max_tokens, job.max_words)
        ticket.deliver([*(Spans(i, (one,)) for i, one in enumerate(found)), Done(0, 0, 0)])
