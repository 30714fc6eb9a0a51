"""Requests and responses of /v1/chat/completions."""

from __future__ import annotations

from typing import Any, Literal, Optional

from pydantic import BaseModel, Field, PlainValidator, WithJsonSchema
from typing_extensions import Annotated

from jittor_lora.serving.api.completion_schema import MOST_TEXTS, Usage
from jittor_lora.serving.api.fields import (
    MOST_LIKELIEST,
    Body,
    Neutral,
    SamplingFields,
    Stop,
    StreamOptions,
    only,
    wrong,
)

_PART = {"type": "object", "required": ["type", "text"], "additionalProperties": False,
         "properties": {"type": {"enum": ["text"]}, "text": {"type": "string"}}}


def _content(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, dict) and part.keys() == {"type", "text"}
                                       and part["type"] == "text" and isinstance(part["text"], str) for part in value):
        return "".join(part["text"] for part in value)
    raise wrong('a text, or a list of {"type": "text", "text": "…"}', value)


Content = Annotated[Any, PlainValidator(_content), WithJsonSchema(
    {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}]})]


class Message(Body):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: Optional[str] = Field(None, description="has no effect")
    refusal: only() = None
    annotations: only([]) = None
    audio: only() = None
    function_call: only() = None
    tool_calls: only([]) = None


class ChatRequest(SamplingFields, Neutral):
    model: str = Field(min_length=1, description="one of /v1/models")
    messages: list[Message] = Field(min_length=1, description="a system's turn at most, then user and assistant in "
                                                              "alternation; a user has the last word")
    max_tokens: Optional[int] = Field(None, ge=1, description="by default as many as fit")
    max_completion_tokens: Optional[int] = Field(None, ge=1, description="the same by its new name")
    n: Optional[int] = Field(1, ge=1, le=MOST_TEXTS)
    stop: Stop = ()
    logprobs: Optional[bool] = False
    top_logprobs: Optional[int] = Field(None, ge=0, le=MOST_LIKELIEST, description="needs `logprobs`")
    stream: Optional[bool] = False
    stream_options: Optional[StreamOptions] = None
    parallel_tool_calls: Optional[bool] = None
    tools: only([]) = None
    tool_choice: only("none", "auto") = None
    functions: only([]) = None
    function_call: only("none", "auto") = None
    response_format: only({"type": "text"}) = None
    modalities: only(["text"]) = None
    audio: only() = None
    prediction: only() = None
    web_search_options: only() = None


class LikelyToken(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class ChosenToken(LikelyToken):
    top_logprobs: list[LikelyToken]


class ChatLogprobs(BaseModel):
    content: list[ChosenToken]
    refusal: None = None


class Reply(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    index: int
    message: Reply
    logprobs: Optional[ChatLogprobs]
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
