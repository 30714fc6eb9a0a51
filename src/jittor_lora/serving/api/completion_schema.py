"""Requests and responses of /v1/completions."""

from __future__ import annotations

from typing import Any, Literal, Optional, Union

from pydantic import BaseModel, Field, PlainValidator, WithJsonSchema
from typing_extensions import Annotated

from jittor_lora.serving.api.fields import MOST_LIKELIEST, Neutral, SamplingFields, Stop, StreamOptions, only, wrong

MOST_TEXTS = 1024  # of a field; `ServeSettings.max_texts` says how many a request may ask for

Prompts = Union[list[str], list[list[int]]]


def _prompts(value: Any) -> Prompts:
    """As a list of texts, or of lists of ids."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(text, str) for text in value):
            return value
        if _are_ids(value):
            return [value]
        if all(isinstance(ids, list) and ids and _are_ids(ids) for ids in value):
            return value
    raise wrong("a text, token ids, or a list of texts or of lists of token ids", value)


def _are_ids(values: list[Any]) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


_IDS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
Prompt = Annotated[Any, PlainValidator(_prompts), WithJsonSchema(
    {"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {"type": "string"}}, _IDS,
               {"type": "array", "minItems": 1, "items": _IDS}]})]


class CompletionRequest(SamplingFields, Neutral):
    model: str = Field(min_length=1, description="one of /v1/models")
    prompt: Prompt
    max_tokens: Optional[int] = Field(16, ge=0, description="0 with `echo` gives the prompt's log-probabilities alone")
    n: Optional[int] = Field(1, ge=1, le=MOST_TEXTS, description="continuations of each prompt")
    best_of: Optional[int] = Field(None, ge=1, le=MOST_TEXTS, description="as `n`; other numbers are not supported")
    stop: Stop = ()
    logprobs: Optional[int] = Field(None, ge=0, le=MOST_LIKELIEST, description="likeliest tokens per place")
    echo: Optional[bool] = Field(False, description="the prompt before each continuation")
    stream: Optional[bool] = False
    stream_options: Optional[StreamOptions] = None
    suffix: only("") = None


class LegacyLogprobs(BaseModel):
    """Places of tokens, in the order of the text.

    `text_offset` counts characters; `top_logprobs` holds the token itself too.
    """

    tokens: list[str]
    token_logprobs: list[Optional[float]]
    top_logprobs: list[Optional[dict[str, float]]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: Optional[LegacyLogprobs]
    finish_reason: Optional[Literal["stop", "length"]]


class CachedTokens(BaseModel):
    cached_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Optional[Usage] = None
