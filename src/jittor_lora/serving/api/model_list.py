"""GET /v1/models: the base and each adapter."""

from __future__ import annotations

from typing import Any, Literal, Optional

from fastapi import APIRouter
from pydantic import BaseModel

from jittor_lora.serving.api.openai_errors import RESPONSES
from jittor_lora.serving.models import Served
from jittor_lora.serving.service import Service


class ModelEntry(BaseModel):
    """A model that requests may name.

    `root` is the base, `parent` what an adapter belongs to; `max_model_len` the model's positions; `chat` whether it
    has a chat template.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["jittor-lora"]
    root: str
    parent: Optional[str]
    max_model_len: int
    chat: bool


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelEntry]


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["OpenAI"], responses=RESPONSES)

    @routes.get("/v1/models", response_model=ModelList)
    async def models() -> dict[str, Any]:
        """All models that requests may name."""
        return {"object": "list", "data": [entry(served) for served in service.models.values()]}

    @routes.get("/v1/models/{name:path}", response_model=ModelEntry)
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        return entry(service.served(name))

    def entry(served: Served) -> dict[str, Any]:
        base = service.models.base
        return {"id": served.name, "object": "model", "created": served.created, "owned_by": "jittor-lora",
                "root": base, "parent": None if served.name == base else base, "max_model_len": service.positions,
                "chat": served.chat is not None}

    return routes
