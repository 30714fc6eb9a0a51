"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter: adapters at run time, by vLLM's names."""

from __future__ import annotations

from typing import Optional

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from pydantic import Field

from jittor_lora.serving.api.fields import Body, only
from jittor_lora.serving.api.json_body import JsonRoute
from jittor_lora.serving.api.openai_errors import RESPONSES
from jittor_lora.serving.models import LONGEST_NAME
from jittor_lora.serving.service import Service


class LoadRequest(Body):
    lora_name: str = Field(min_length=1, max_length=LONGEST_NAME, description="the model's name in requests")
    lora_path: str = Field(min_length=1, max_length=4096, description="of an adapter in the folders that the server "
                                                                      "was started with")
    lora_int_id: Optional[int] = Field(None, description="has no effect")
    load_inplace: only(False) = None
    base_model_name: Optional[str] = Field(None, description="has no effect")


class UnloadRequest(Body):
    lora_name: str = Field(min_length=1, max_length=LONGEST_NAME)
    lora_int_id: Optional[int] = Field(None, description="has no effect")


_TEXT = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "What was done."}}


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=JsonRoute, tags=["adapters"], responses=RESPONSES)

    @routes.post("/v1/load_lora_adapter", responses=_TEXT, response_class=Response)
    async def load(body: LoadRequest) -> PlainTextResponse:
        """Serve an adapter under a new name."""
        await service.load_adapter(body.lora_name, body.lora_path)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @routes.post("/v1/unload_lora_adapter", responses=_TEXT, response_class=Response)
    async def unload(body: UnloadRequest) -> PlainTextResponse:
        """Serve it no more; requests that were taken are answered first."""
        await service.unload_adapter(body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    return routes
