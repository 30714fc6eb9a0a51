"""What the server is told at its start: where it listens, who may ask, and how much."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional


@dataclass(frozen=True)
class ServeSettings:
    """
    Args:
        host, port: where it listens; port 0 is any free one.
        api_key: that requests must carry; None for none.
        allowed_hosts: further names in the Host header, lower case, without a port.
        cors_origins: pages of these origins may send requests, such as "https://example.org".
        max_body_bytes: of a request.
        max_prompt_tokens: of a prompt; None for as many as the model has positions.
        max_tokens: most new tokens per text.
        max_texts: most texts per request: prompts by continuations, or questions by models and methods.
        waiting, batch_size, cache_bytes, running_bytes, request_seconds: limits of the engine; see `EngineLimits`.
        runs: the folder whose run folders are shown; None for none.
        adapter_folders: adapters below these may be loaded at run time.
        drain_seconds: that running requests have to end when the server stops.
        log_texts: whether prompts and answers may be logged.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: Optional[str] = field(default=None, repr=False)
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 4 << 20
    max_prompt_tokens: Optional[int] = None
    max_tokens: int = 4096
    max_texts: int = 128
    waiting: int = 256
    batch_size: int = 64
    cache_bytes: int = 1 << 30
    running_bytes: int = 4 << 30
    request_seconds: Optional[float] = 600.0
    runs: Optional[Path] = None
    adapter_folders: tuple[Path, ...] = ()
    drain_seconds: float = 30.0
    log_texts: bool = False
