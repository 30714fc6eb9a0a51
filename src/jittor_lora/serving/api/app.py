"""The application: all endpoints over one service."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Depends, FastAPI
from fastapi.security import HTTPBearer

from jittor_lora import __version__
from jittor_lora.serving.api import adapters_api, answers, chat, completions, model_list
from jittor_lora.serving.api.openai_errors import install
from jittor_lora.serving.service import Service
from jittor_lora.serving.views import adapters_view, page_files, runs_api

ROUTERS: tuple[Callable[[Service], APIRouter], ...] = (
    model_list.router,
    completions.router,
    chat.router,
    answers.router,
    adapters_api.router,
    page_files.router,
    runs_api.router,
    adapters_view.router,
)


def create_app(service: Service) -> FastAPI:
    """
    Args:
        service: shared by all endpoints.
    """
    # The key is checked before a request reaches the app; here it is only described.
    keys = [Depends(HTTPBearer(auto_error=False))] if service.settings.api_key else []
    app = FastAPI(title="jittor-lora", version=__version__, docs_url=None, redoc_url=None, dependencies=keys)
    install(app)
    for router in ROUTERS:
        app.include_router(router(service))
    return app
