"""Chat templates: Jinja2 programs that write a conversation as one text, as transformers renders them.

A template comes with a model and is untrusted, so it runs in a process of its own (`chat_worker.py`) under limits of
time, memory and length, with a sandbox inside.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Sequence

from jittor_lora.data.chat_worker import SECONDS
from jittor_lora.data.conversations import Turn
from jittor_lora.errors import UserError

LARGEST_TEMPLATE = 1 << 19  # characters
MOST_TEXT = 1_000_000  # characters of a rendering, besides eight times those of the conversation
_WORKER = Path(__file__).with_name("chat_worker.py")


class TemplateRefusal(UserError):
    """The template refuses a conversation or fails at it.

    Attributes:
        words: its own, or Jinja2's.
    """

    def __init__(self, origin: str, words: str):
        super().__init__(f"{origin}: the chat template refuses the conversation: {words}.")
        self.words = words


class Rendering(NamedTuple):
    """What to render: the first `count` turns, followed by the start of an assistant's turn if `prompt`."""

    count: int
    prompt: bool = False


class ChatTemplate:
    """A chat template with the values of its variables.

    Attributes:
        source: the Jinja2 program.
        origin: the file or name that it came from, for messages.
        tokens: spellings of special tokens by the names that templates use: {"eos_token": "</s>"}.
        arguments: further variables, such as {"enable_thinking": False}.
        now: what `strftime_now` tells the template; a date in the text changes its tokens, so runs that must have the
            same tokens need the same `now`.
    """

    def __init__(self, source: str, origin: str, tokens: Mapping[str, str] | None = None,
                 arguments: Mapping[str, Any] | None = None, now: datetime.datetime | None = None):
        """
        Raises:
            UserError: the source is too long.
        """
        if len(source) > LARGEST_TEMPLATE:
            raise UserError(f"{origin}: expected a chat template of at most {LARGEST_TEMPLATE:,} characters; "
                            f"found {len(source):,}.")
        self.source, self.origin = source, origin
        self.tokens, self.arguments = dict(tokens or {}), dict(arguments or {})
        self.now = now or datetime.datetime.now()
        self._worker: _Worker | None = None
        self._lock = threading.Lock()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChatTemplate) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self.source)

    def _key(self) -> tuple[Any, ...]:
        return self.source, self.tokens, self.arguments, self.now if self.uses_date else None

    @property
    def uses_date(self) -> bool:
        """Whether the text may depend on `now`."""
        return "strftime_now" in self.source

    def render(self, turns: Sequence[Turn], generation_prompt: bool = False) -> str:
        """The text of a conversation, with the start of an assistant's turn at its end if `generation_prompt`.

        Raises:
            TemplateRefusal: the template refuses the turns, or fails.
            UserError: it is no Jinja2 program, or meets a limit of time, memory or length.
        """
        text = self.render_all(turns, [Rendering(len(turns), generation_prompt)])[0]
        if isinstance(text, TemplateRefusal):
            raise text
        return text

    def render_all(self, turns: Sequence[Turn], wanted: Sequence[Rendering]) -> list[str | TemplateRefusal]:
        """Several renderings of the first turns of one conversation; a refusal stands in place of the text.

        Raises:
            UserError: as for `render`, but for refusals.
        """
        if not wanted:
            return []
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        with self._lock:
            if self._worker is None or self._worker.owner != os.getpid():
                self._worker = _Worker(self)
            answers = self._worker.ask([messages, [list(rendering) for rendering in wanted]], len(wanted))
        return [answer["text"] if "text" in answer else self._error(answer) for answer in answers]

    def _error(self, answer: Mapping[str, Any]) -> TemplateRefusal:
        if answer["limit"]:
            raise UserError(f"{self.origin}: the chat template {answer['error']}. Use another (--chat-template).")
        return TemplateRefusal(self.origin, answer["error"].rstrip("."))


class _Worker:
    """The process that renders, started anew after it failed.

    Attributes:
        owner: id of the process that may talk to it: a fork may not.
    """

    def __init__(self, template: ChatTemplate):
        self.owner = os.getpid()
        self._origin = template.origin
        self._setup = {"path": [os.path.abspath(path) for path in sys.path if path], "source": template.source,
                       "variables": {**template.tokens, **template.arguments}, "now": template.now.isoformat(),
                       "most": MOST_TEXT}
        self._process: subprocess.Popen | None = None

    def ask(self, request: Any, count: int) -> list[dict[str, Any]]:
        """The `count` answers to a request."""
        if self._process is None:
            self._start()
        return self._exchange(request, count)

    def _start(self) -> None:
        # A session of its own: Ctrl-C at the terminal is for this process, whose end is the worker's end of input.
        try:
            self._process = subprocess.Popen([sys.executable, "-I", str(_WORKER)], stdin=subprocess.PIPE,
                                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
        except OSError as error:
            raise UserError(f"{self._origin}: the process for the chat template cannot be started: {sys.executable}: "
                            f"{error.strerror}.") from error
        self._stop = weakref.finalize(self, _end, self._process, self.owner)
        answer = self._exchange(self._setup, 1)[0]
        if "error" in answer:
            self._forget()
            raise UserError(f"{self._origin}: not a chat template that Jinja2 reads: {answer['error'].rstrip('.')}.")

    def _exchange(self, request: Any, count: int) -> list[dict[str, Any]]:
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            lines = [self._process.stdout.readline() for _ in range(count)]
            if lines[-1].endswith(b"\n"):
                return [json.loads(line) for line in lines]
        except BrokenPipeError:
            pass
        except BaseException:
            self._forget()
            raise
        code = self._process.wait()  # its output has ended
        self._forget()
        what = f"takes more than {SECONDS} second" if code == -signal.SIGPROF else f"ends its process ({code})"
        raise UserError(f"{self._origin}: the chat template {what}. Use another (--chat-template).")

    def _forget(self) -> None:
        self._process = None
        self._stop()


def _end(process: subprocess.Popen, owner: int) -> None:
    """Ends a process that waits for input, computes or has ended; a fork of its owner only closes the pipes."""
    if os.getpid() == owner:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(BrokenPipeError):
            pipe.close()
