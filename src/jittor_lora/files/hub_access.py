"""Asking a model hub, with a time limit, and why it did not answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Unavailable(Exception):
    """A model or data set is not available from its source; the message is the reason, as part of a sentence."""


def answered(ask: Callable[[], Any], seconds: float) -> Any:
    """What `ask` returns.

    Raises:
        Unavailable: it raised, or did not return within `seconds`.
    """
    outcome: list[tuple[Any, Exception | None]] = []

    def run() -> None:
        try:
            outcome.append((ask(), None))
        except Exception as error:  # the library's, its HTTP client's and the socket's
            outcome.append((None, error))

    # The HTTP client's time-out applies per address, and not to name resolution: behind a firewall that drops packets
    # these add up to minutes.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise Unavailable(f"no answer within {seconds:g} seconds")
    value, error = outcome[0]
    if error is not None:
        raise Unavailable(reason(error)) from error
    return value


def reason(error: Exception) -> str:
    """An exception of huggingface_hub or modelscope, or of what they are built on, as part of a sentence."""
    name = type(error).__name__
    if name == "GatedRepoError":
        return "its owner must grant access first, and you must be logged in (hf auth login)"
    if name == "RepositoryNotFoundError":
        return "there is no such repository, or it is private"
    if name == "OfflineModeIsEnabled":
        return "HF_HUB_OFFLINE is set and it is not in the local cache"
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{name}: {first[:160]}" if first else name
