"""GET /health: whether the server answers."""

from __future__ import annotations

import time
from typing import Any

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


def router(service: Any) -> APIRouter:
    """Of `service` are used `health`, `settings` and `session`. With an API key, the model is not told to all."""
    routes, health = APIRouter(), service.health

    @routes.get("/health", summary="Whether the server answers")
    async def _health(response: Response) -> dict[str, Any]:
        if not health.ok:
            response.status_code = 503
        if service.settings.api_key is not None:
            return {"status": health.status}
        return {"status": health.status, "model": service.session.base.name, "seconds": round(health.seconds, 1)}

    return routes
