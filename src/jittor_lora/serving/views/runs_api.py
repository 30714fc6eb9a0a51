"""GET /ui/runs and /ui/runs/{id}: training runs for the page, from their files alone."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, Callable, Optional

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse

from jittor_lora.serving.api.openai_errors import RESPONSES, ApiError
from jittor_lora.serving.service import Service
from jittor_lora.serving.views.run_curves import MOST_STEPS
from jittor_lora.serving.views.run_files import RunDetails, RunFiles, RunList


def router(service: Service) -> APIRouter:
    """Reads in one thread of its own: neither the event loop nor the computing thread waits for a disk."""
    routes, files = APIRouter(tags=["page"], responses=RESPONSES), RunFiles(service.settings.runs)
    thread = ThreadPoolExecutor(1, "run-files")

    async def read(function: Callable[[], Any]) -> Optional[JSONResponse]:
        def answer() -> Optional[JSONResponse]:
            found = function()
            return None if found is None else JSONResponse(asdict(found), headers={"Cache-Control": "no-store"})

        return await asyncio.get_running_loop().run_in_executor(thread, answer)

    @routes.get("/ui/runs", response_model=RunList)
    async def runs() -> Any:
        """Run folders below the one that the server was given, and where each stands."""
        return await read(files.listing)

    @routes.get("/ui/runs/{id:path}", response_model=RunDetails)
    async def run(id: str, since: Optional[int] = Query(None, ge=0, le=MOST_STEPS),
                  version: str = Query("", max_length=64)) -> Any:
        """A run's curves, settings, scores and answers.

        Args:
            id: of the listing.
            since, version: `curves.complete` and `curves.version` of the answer before: only what is new, of the
                curves alone.
        """
        found = await read(lambda: files.details(id, since, version))
        if found is None:
            raise ApiError(404, "id: there is no such run.", "id")
        return found

    return routes
