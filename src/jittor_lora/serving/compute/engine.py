"""The engine: one thread computes, for all jobs together.

In each step the texts of all running jobs advance by a token, and some tokens of new prompts are read. Jobs join and
leave between steps.
"""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Union

from jittor_lora.errors import UserError
from jittor_lora.inference.reader import Reader, Turn
from jittor_lora.inference.readers import readers_of
from jittor_lora.inference.steps import advance
from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.serving.compute.admission import Admission
from jittor_lora.serving.compute.extracting import Extracting
from jittor_lora.serving.compute.generating import Generating
from jittor_lora.serving.compute.jobs import Busy, Deliver, Event, Failed, Generation, Job, Stopping

READ_ALONE = 1024  # tokens of prompts that are read in a step where no text waits for its next token


@dataclass(frozen=True)
class EngineLimits:
    """
    Args:
        batch_size: most texts that advance together.
        waiting: most jobs that wait.
        cache_bytes: of keys and values kept for prefixes that come again; 0 keeps none.
        running_bytes: of keys and values of running texts; a job that alone needs more is refused.
        seconds: most time for a job, from `submit` on; None for no limit.
        read_tokens: of prompts that are read in one step beside other texts.
    """

    batch_size: int = 64
    waiting: int = 256
    cache_bytes: int = 1 << 30
    running_bytes: int = 4 << 30
    seconds: Optional[float] = None
    read_tokens: int = 256


class Statistics(NamedTuple):
    """The engine's state, and counts since its start.

    Args:
        waiting, running: jobs now.
        texts: that advance together now.
        cache_bytes, cache_limit: of the prefix cache.
        done, cancelled, failed: jobs.
        prompt_tokens, cached_tokens, completion_tokens: as in `Done`.
        steps: of the engine.
    """

    waiting: int = 0
    running: int = 0
    texts: int = 0
    cache_bytes: int = 0
    cache_limit: int = 0
    done: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    steps: int = 0


class Ticket:
    """A job that was submitted."""

    def __init__(self, job: Job, deliver: Deliver, deadline: Optional[float]):
        self.job, self._deliver, self.deadline = job, deliver, deadline
        self._cancelled = threading.Event()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Stop at the next step; nothing is delivered after it. May be called from any thread, and again."""
        self._cancelled.set()

    def deliver(self, events: list[Event]) -> None:
        if events and not self.cancelled:
            try:
                self._deliver(events)
            except RuntimeError:  # the loop that listened is closed
                self.cancel()


class _Running:
    """A job that has begun.

    Attributes:
        progress: its works; None once it has ended.
        events: to be delivered after the step.
    """

    def __init__(self, ticket: Ticket):
        self.ticket, self.events = ticket, []
        self.progress: Union[Generating, Extracting, None] = None


class Engine:
    """Computes jobs in the thread that calls `run`; all other methods may be called from any thread.

    Texts are bit for bit those of `Generator` and `Extractor` alone, whatever else is computed with them.
    """

    def __init__(self, model: CausalLM, limits: EngineLimits = EngineLimits()):
        self._model, self.limits = model, limits
        self._inbox: queue.SimpleQueue = queue.SimpleQueue()  # tickets, and (adapter, function, future)
        self._lock = threading.Lock()
        self._submitted = 0  # jobs that have not begun
        self._stopping: Optional[float] = None  # when running jobs are given up
        self._readers: dict[Optional[str], Reader] = {}
        self._admission = Admission(limits.batch_size, limits.running_bytes, limits.cache_bytes)
        self._waiting: deque[Ticket] = deque()
        self._running: list[_Running] = []
        self._owners: dict[int, _Running] = {}  # by the id of a work
        self._calls: list[tuple[Optional[str], Callable[[], Any], Future]] = []
        self._count = dict.fromkeys(Statistics._fields[5:], 0)
        self._statistics = Statistics(cache_limit=limits.cache_bytes)
        self._ended: deque[float] = deque(maxlen=64)  # when the last jobs ended

    def prepare(self, adapters: Sequence[Optional[str]]) -> None:
        """Do beforehand what the first texts of these adapters would wait for, such as packing weights. To be called in
        the computing thread.

        Raises:
            UserError: no such adapter, or the model's numbers are not finite.
        """
        for adapter in adapters:
            reader = self._reader(adapter)
            for read in (reader.likeliest, reader.logits):
                read([Turn(reader.open(0, [1]), (), [(0, [0])])])

    def submit(self, job: Job, deliver: Deliver) -> Ticket:
        """Put a job in the queue. `deliver` is called in the computing thread, once per step with all new events; the
        last event is `Done` or `Failed`. It must not block.

        Raises:
            Busy: too many jobs wait.
            Stopping: `stop` was called.
        """
        with self._lock:
            if self._stopping is not None:
                raise Stopping
            if self._submitted >= self.limits.waiting:
                raise Busy(self._seconds_to_wait())
            self._submitted += 1
        ticket = Ticket(job, deliver, None if self.limits.seconds is None else time.monotonic() + self.limits.seconds)
        self._inbox.put(ticket)
        return ticket

    def call(self, function: Callable[[], Any]) -> Future:
        """Call a function in the computing thread between two steps, such as one that loads an adapter."""
        future: Future = Future()
        self._inbox.put((None, function, future))
        return future

    def retire(self, adapter: str, function: Callable[[], Any]) -> Future:
        """As `call`, once no job that has been submitted uses this adapter; what was kept of it is dropped."""
        future: Future = Future()
        self._inbox.put((adapter, function, future))
        return future

    def stop(self, seconds: float) -> None:
        """Take no more jobs, and let `run` return once all are done, or have been given up after `seconds`."""
        with self._lock:
            self._stopping = time.monotonic() + seconds
        self._inbox.put(None)

    def statistics(self) -> Statistics:
        return self._statistics._replace(waiting=self._submitted)

    def run(self) -> None:
        """Compute until `stop`."""
        while True:
            self._receive()
            self._drop_ended()
            self._call()
            self._begin()
            if self._running:
                self._step()
            elif self._stopping is not None and not self._waiting and self._inbox.empty():
                self._call()
                return

    # --- between steps ------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        """Take what has come; wait if there is nothing to do."""
        wait = not self._running and not self._waiting and not self._calls and self._stopping is None
        while wait or not self._inbox.empty():
            item, wait = self._inbox.get(), False
            if isinstance(item, Ticket):
                self._waiting.append(item)
            elif item is not None:
                self._calls.append(item)

    def _drop_ended(self) -> None:
        """Give up jobs that were cancelled or whose time is over, and all where the engine has to stop."""
        now = time.monotonic()
        late = self._stopping is not None and now >= self._stopping
        for ticket in [*self._waiting, *(running.ticket for running in self._running)]:
            failure = None
            if late:
                failure = Failed("The server stops.", "stopping")
            elif ticket.deadline is not None and now >= ticket.deadline:
                failure = Failed(f"The request took more than {self.limits.seconds:g} s.", "timeout")
            if ticket.cancelled or failure:
                self._end(ticket, failure)

    def _call(self) -> None:
        """Make the calls that are due."""
        later = []
        for adapter, function, future in self._calls:
            if adapter is not None and any(ticket.job.adapter == adapter for ticket in
                                           [*self._waiting, *(running.ticket for running in self._running)]):
                later.append((adapter, function, future))
                continue
            if adapter is not None:
                self._readers.pop(adapter, None)
                self._admission.cache.forget(adapter)
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:
                    future.set_exception(error)
        self._calls = later

    def _begin(self) -> None:
        """Begin jobs while there is room, and open their works."""
        while self._waiting and self._admission.has_room:
            ticket = self._waiting.popleft()
            with self._lock:
                self._submitted -= 1
            running = _Running(ticket)
            self._running.append(running)
            try:
                running.progress = self._progress(ticket.job, running.events)
                self._admission.check(running.progress.works)
            except UserError as error:
                self._end(ticket, Failed(str(error), "request"))
            except Exception:
                self._end(ticket, _broken())
            else:
                for work in running.progress.works:
                    self._owners[id(work)] = running
                    self._admission.add(ticket.job.adapter, work)
                if not running.progress.left:
                    self._finish(running)
            self._admit()
        self._admit()

    def _progress(self, job: Job, events: list[Event]) -> Union[Generating, Extracting]:
        reader = self._reader(job.adapter)
        if isinstance(job, Generation):
            return Generating(job, reader, self._model.config, self.limits.batch_size, events)
        return Extracting(job, reader, self._model.config, events)

    def _admit(self) -> None:
        for work, known in self._admission.admit():
            self._owners[id(work)].progress.opened(work, known)

    def _reader(self, adapter: Optional[str]) -> Reader:
        if adapter not in self._readers:
            self._readers[adapter], = readers_of(self._model, [adapter])
        return self._readers[adapter]

    # --- a step -------------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        live = self._admission.live
        decoding = any(not work.unread for work in live)
        room = self.limits.read_tokens if decoding else READ_ALONE
        for base in dict.fromkeys(work.reader.base for work in live):
            works = [work for work in live if work.reader.base == base]
            try:
                room = advance(works, room)
            except Exception as error:
                failure = Failed(str(error), "server") if isinstance(error, UserError) else _broken()
                for running in {id(self._owners[id(work)]): self._owners[id(work)] for work in works}.values():
                    self._end(running.ticket, failure)
        for work in self._admission.keep():
            del self._owners[id(work)]
        self._count["steps"] += 1
        for running in list(self._running):
            if not running.progress.left:
                self._finish(running)
            else:
                running.ticket.deliver(running.events.copy())
                running.events.clear()
        self._note()

    def _finish(self, running: _Running) -> None:
        done = running.progress.done
        self._leave(running)
        for name, value in done._asdict().items():
            self._count[name] += value
        self._count["done"] += 1
        self._ended.append(time.monotonic())
        running.ticket.deliver([*running.events, done])

    def _end(self, ticket: Ticket, failure: Optional[Failed]) -> None:
        """End a job that is not complete: with a failure, or since it was cancelled."""
        events: list[Event] = []
        if ticket in self._waiting:
            self._waiting.remove(ticket)
            with self._lock:
                self._submitted -= 1
        for running in self._running:
            if running.ticket is ticket:
                self._leave(running)
                events = running.events
                break
        self._count["cancelled" if failure is None else "failed"] += 1
        if failure:
            ticket.deliver([*events, failure])
        self._note()

    def _leave(self, running: _Running) -> None:
        works = running.progress.works if running.progress else []
        self._admission.remove(works)
        for work in works:
            self._owners.pop(id(work), None)
        self._running.remove(running)

    def _note(self) -> None:
        self._statistics = Statistics(0, len(self._running), self._admission.advancing, self._admission.cache.size,
                                      self.limits.cache_bytes, **self._count)

    def _seconds_to_wait(self) -> int:
        """After which there should be room, from how fast jobs ended of late; 1 to 60."""
        ended = list(self._ended)
        if len(ended) < 2:
            return 1
        pace = (time.monotonic() - ended[0]) / len(ended)
        return int(min(60, max(1, pace * max(1, self.limits.waiting // 8))))


def _broken() -> Failed:
    """After a bug, whose traceback goes to standard error."""
    traceback.print_exc()
    return Failed("An internal error; the server's log has its traceback.", "server")
