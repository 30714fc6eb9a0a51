"""GET /health: whether the server answers."""

from __future__ import annotations

import time
from typing import Any, Optional

from fastapi import APIRouter, Response

OK, STOPPING, FAILED = "ok", "stopping", "failed"


class Health:
    """
    Attributes:
        status: one of the above. Written by one thread at a time, read by any.
    """

    def __init__(self) -> None:
        self.status = OK
        self._started = time.monotonic()

    @property
    def ok(self) -> bool:
        return self.status == OK

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started


def router(health: Health, model: Optional[str]) -> APIRouter:
    """
    Args:
        model: the base's name; None if not everybody may know.
    """
    routes = APIRouter()

    @routes.get("/health", summary="Whether the server answers")
    async def _health(response: Response) -> dict[str, Any]:
        if not health.ok:
            response.status_code = 503
        known = {} if model is None else {"model": model, "seconds": round(health.seconds, 1)}
        return {"status": health.status, **known}

    return routes
