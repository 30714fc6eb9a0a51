"""POST /v1/answers: questions about a context, by one or several models, generated or as spans of the context.

The texts are those of `inference.asking.answers`, the spans those of `inference.extraction.Extractor`.
"""

from __future__ import annotations

import math
import secrets
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, Optional

from fastapi import APIRouter, Request, Response

from jittor_lora.evaluation.scoring import rule_of_text
from jittor_lora.inference.extraction import Candidates
from jittor_lora.inference.generator import Decoding
from jittor_lora.inference.sampling import Sampling
from jittor_lora.serving.api.answers_schema import MOST_SPANS, Answers, AnswersRequest
from jittor_lora.serving.api.fields import stop_of
from jittor_lora.serving.api.json_body import JsonRoute
from jittor_lora.serving.api.openai_errors import RESPONSES, ApiError
from jittor_lora.serving.api.streaming import EVENTS, Run, in_chunks, in_one_piece, unless_gone
from jittor_lora.serving.compute.jobs import End, Event, Extraction, Generation, Job, Piece, Spans
from jittor_lora.serving.models import Served
from jittor_lora.serving.service import Service

GENERATION, SPAN = "generation", "span"


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=JsonRoute, tags=["answers"], responses=RESPONSES)

    @routes.post("/v1/answers", responses={200: {"model": Answers, "content": EVENTS}})
    async def answers(request: Request, body: AnswersRequest) -> Response:
        """Answer questions about a context, which each model reads once."""
        return await unless_gone(request, _Answers(service, body).respond())

    return routes


class _Answers:
    """One request: a job per model and method, in this order."""

    def __init__(self, service: Service, body: AnswersRequest):
        self.service, self.body, self.began = service, body, time.monotonic()
        self.questions = _one_or_several(body.question, body.questions, "question", "questions")
        self.names = _one_or_several(body.model, body.models, "model", "models", service.models.base)
        for field, values in (("models", self.names), ("methods", body.methods)):
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                raise ApiError(400, f"{field}: expected each once; found {twice} twice.", field)
        self.models: Sequence[Served] = [service.served(name) for name in self.names]
        service.check_texts(len(self.questions) * len(self.names) * len(body.methods),
                            "questions times models times methods")
        service.check_new_tokens(body.max_tokens)
        self.head = {"id": f"ans-{secrets.token_hex(12)}"}
        self.work = [(served, method) for served in self.models for method in body.methods]
        self.found = {(question, number): _Answer(question, served.name, method)
                      for question in range(len(self.questions)) for number, (served, method) in enumerate(self.work)}

    async def respond(self) -> Response:
        run = await self.service.begin(self.models, self._jobs)
        if self.body.stream:
            return await in_chunks(run, self._chunks(run))
        return await in_one_piece(run, self._take, lambda: {
            **self.head, "object": "answers", "created": int(time.time()),
            "answers": [answer.whole() for answer in self.found.values()], **self._end(run)})

    def _take(self, number: int, event: Event) -> Optional[dict[str, Any]]:
        """What an event adds to an answer."""
        return self.found[event.index, number].add(event) if isinstance(event, (Piece, End, Spans)) else None

    def _end(self, run: Run) -> dict[str, Any]:
        return {"usage": run.usage, "seconds": round(time.monotonic() - self.began, 3)}

    def _jobs(self) -> list[Job]:
        body = self.body
        temperature = 0.0 if body.temperature < sys.float_info.min else body.temperature
        sampling = Sampling(temperature=temperature, top_p=body.top_p, seed=body.seed)
        decoding = Decoding(body.max_tokens, sampling, stop_of(body.stop))
        encoded: dict[Any, dict[str, Job]] = {}  # models that put texts together in the same way share it
        jobs: list[Job] = []
        for served in self.models:
            way = served.prompting.template, served.prompting.special_tokens
            if way not in encoded:
                encoded[way] = self._encoded(served, decoding)
            jobs += [replace(encoded[way][method], adapter=served.adapter) for method in body.methods]
        return jobs

    def _encoded(self, served: Served, decoding: Decoding) -> dict[str, Job]:
        """By method."""
        body, jobs = self.body, {}
        groups = served.generator.groups([(body.context, question) for question in self.questions])
        self.service.check_prompts(groups, "context")
        if GENERATION in body.methods:
            jobs[GENERATION] = Generation(served.generator, None, groups, decoding, trim=True)
        if SPAN in body.methods:
            placed = [(prefix, prompts, body.context) for prefix, prompts in groups]
            jobs[SPAN] = Extraction.of(served.extractor, None, placed, body.spans, body.max_span_tokens,
                                       candidates=self._candidates())
        return jobs

    def _candidates(self) -> Optional[Candidates]:
        if self.body.aim != "f1":
            return None
        return Candidates(MOST_SPANS, rule_of_text(self.body.context), self.body.span_temperature)

    async def _chunks(self, run: Run) -> AsyncIterator[dict[str, Any]]:
        head = {**self.head, "object": "answers.chunk"}
        async for number, event in run:
            found = self._take(number, event)
            if found is not None:
                yield {**head, **found}
        yield {**head, **self._end(run)}


class _Answer:
    """One answer: what is known of it. Whitespace at the end of a generated one is dropped."""

    def __init__(self, question: int, model: str, method: str):
        self._head = {"question": question, "model": model, "method": method}
        self._texts: list[str] = []
        self._held = ""  # whitespace that may turn out to be the end
        self._rest: dict[str, Any] = {}

    def add(self, event: Piece | End | Spans) -> Optional[dict[str, Any]]:
        """Take an event; returns what it adds, if anything."""
        if isinstance(event, Piece):
            text = self._held + event.text
            certain = text.rstrip()
            self._held = text[len(certain):]
            self._texts.append(certain)
            return {**self._head, "delta": certain} if certain else None
        if isinstance(event, End):
            self._rest = {"finish_reason": event.reason, "tokens": event.tokens}
            return {**self._head, "delta": "", **self._rest}
        self._rest = {"spans": [{"text": span.text, "start": span.start, "end": span.end,
                                 "probability": min(1.0, math.exp(span.log_probability)),
                                 "log_probability": span.log_probability,
                                 **({} if span.expected_f1 is None else {"expected_f1": span.expected_f1})}
                                for span in event.spans if span.log_probability > -math.inf]}
        return {**self._head, **self._rest}

    def whole(self) -> dict[str, Any]:
        text = {"text": "".join(self._texts)} if self._head["method"] == GENERATION else {}
        return {**self._head, **text, **self._rest}


def _one_or_several(one: Optional[str], several: Optional[list[str]], name: str, names: str,
                    default: Optional[str] = None) -> list[str]:
    """
    Raises:
        ApiError: both are given, or neither without a default.
    """
    if one is not None and several is not None:
        raise ApiError(400, f"{name}: expected this or {names}; found both. Leave one out.", name)
    found = several if one is None else [one]
    if found is None and default is None:
        raise ApiError(400, f"{names}: expected at least one; found nothing.", names)
    return [default] if found is None else found
