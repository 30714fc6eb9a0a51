"""Requests and responses of /v1/answers."""

from __future__ import annotations

from typing import Literal, Optional, Union

from pydantic import BaseModel, Field

from jittor_lora.serving.api.completion_schema import MOST_TEXTS, Usage
from jittor_lora.serving.api.fields import LARGEST, SEEDS, Body, Stop
from jittor_lora.settings.shared import SPAN_TEMPERATURE

Method = Literal["generation", "span"]
Aim = Literal["likeliest", "f1"]
MOST_SPANS = 20


class AnswersRequest(Body):
    """Questions about one context. Give `question` or `questions`, and `model`, `models` or neither for the base."""

    context: str = Field(min_length=1)
    question: Optional[str] = Field(None, min_length=1)
    questions: Optional[list[str]] = Field(None, min_length=1, max_length=MOST_TEXTS)
    model: Optional[str] = Field(None, min_length=1)
    models: Optional[list[str]] = Field(None, min_length=1, max_length=MOST_TEXTS)
    methods: Optional[list[Method]] = Field(["generation"], min_length=1, max_length=2)
    max_tokens: Optional[int] = Field(64, ge=1, description="of a generated answer")
    temperature: Optional[float] = Field(0.0, ge=0, le=100)
    top_p: Optional[float] = Field(1.0, gt=0, le=1)
    seed: Optional[int] = Field(0, ge=0, lt=SEEDS)
    stop: Stop = Field(("\n",), description="[] to stop at the end of text alone")
    spans: Optional[int] = Field(1, ge=1, le=MOST_SPANS, description="best spans per question")
    aim: Optional[Aim] = Field("likeliest", description="order spans by probability, or the "
                                                        f"{MOST_SPANS} likeliest by expected F1")
    span_temperature: Optional[float] = Field(SPAN_TEMPERATURE, gt=0, le=100, description="with aim f1: weigh spans by "
                                              "their probability to the power of 1 / this")
    stream: Optional[bool] = False
    max_span_tokens: Optional[int] = Field(32, ge=1, le=LARGEST, description="longer spans are skipped")


class Span(BaseModel):
    """`context[start:end]` in characters (code points), and how likely it is as the whole answer."""

    text: str
    start: int
    end: int
    probability: float
    log_probability: float
    expected_f1: Optional[float] = Field(None, description="with aim f1, 0 to 1")


class GeneratedAnswer(BaseModel):
    question: int
    model: str
    method: Literal["generation"]
    text: str
    finish_reason: Literal["stop", "length"]
    tokens: int


class SpanAnswer(BaseModel):
    """The best spans, best first; none where the context has none."""

    question: int
    model: str
    method: Literal["span"]
    spans: list[Span]


class Answers(BaseModel):
    """`question` is the number of a question, from 0."""

    id: str
    object: Literal["answers"]
    created: int
    answers: list[Union[GeneratedAnswer, SpanAnswer]]
    usage: Usage
    seconds: float
