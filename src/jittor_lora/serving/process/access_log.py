"""One line per request: who, what, how it ended, how long it took, how many tokens; the metrics get the same. No keys,
and no texts unless they are asked for."""

from __future__ import annotations

import re
import time

from jittor_lora.serving.process.asgi import App, Message, Receive, Scope, Send
from jittor_lora.serving.process.log import Log
from jittor_lora.serving.process.metrics import Metrics, Record, current

LONGEST_TEXT = 4_000  # bytes of a body that are logged
LONGEST_PATH = 200
_NOT_PRINTABLE = re.compile(r"[\x00-\x1f\x7f-\xa0\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class Logged:
    """The outermost middleware.

    Args:
        texts: whether bodies are logged, too.
    """

    def __init__(self, app: App, metrics: Metrics, log: Log, texts: bool):
        self._app, self._metrics, self._log, self._texts = app, metrics, log, texts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        record, began = Record(), time.monotonic()
        status, complete = 0, False
        asked, answered = bytearray(), bytearray()

        async def receiving() -> Message:
            message = await receive()
            _gather(asked, message)
            return message

        async def sending(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                complete = not message.get("more_body", False)
                if texts:
                    _gather(answered, message)
            await send(message)

        token = current.set(record)
        texts = self._texts and scope["method"] == "POST"
        try:
            await self._app(scope, receiving if texts else receive, sending)
        finally:
            current.reset(token)
            seconds = time.monotonic() - began
            self._metrics.answered(getattr(scope.get("route"), "path", "other"), status, seconds)
            self._log.say(_line(scope, status, complete, seconds, record))
            for name, text in (("request", asked), ("answer", answered)):
                if text:
                    self._log.say(f"  {name}: {printable(text.decode('utf-8', 'backslashreplace'))}")


def printable(text: str) -> str:
    """`text` with the characters escaped that a terminal could interpret."""
    return _NOT_PRINTABLE.sub(lambda found: found.group().encode("unicode_escape").decode("ascii"), text)


def _gather(text: bytearray, message: Message) -> None:
    text += message.get("body", b"")[: LONGEST_TEXT - len(text)]


def _line(scope: Scope, status: int, complete: bool, seconds: float, record: Record) -> str:
    client = scope.get("client") or ("-",)
    path = printable(scope.get("raw_path", b"").decode("latin-1"))[:LONGEST_PATH]
    words = [time.strftime("%Y-%m-%dT%H:%M:%S"), str(client[0]), scope["method"], path, str(status) if status else "-",
             f"{seconds * 1e3:.0f} ms"]
    if record.prompt:
        words.append(f"{record.prompt} + {record.completion} tokens, {record.cached} cached")
    if not complete:
        words.append("client gone")
    return printable(" ".join(words))


