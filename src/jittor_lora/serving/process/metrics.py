"""GET /metrics: counts and times in Prometheus' text form, https://prometheus.io/docs/instrumenting/exposition_formats/."""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Optional

from fastapi import APIRouter, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.serving.compute.engine import Engine, EngineLimits, Statistics, Ticket
from jittor_lora.serving.compute.jobs import Deliver, Done, Event, Job, Piece, Spans

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)  # bounds of the histograms' buckets


@dataclass
class Record:
    """What the jobs of one request came to: tokens."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0

    def add(self, done: Done) -> None:
        self.prompt += done.prompt_tokens
        self.cached += done.cached_tokens
        self.completion += done.completion_tokens


current: contextvars.ContextVar[Optional[Record]] = contextvars.ContextVar("request", default=None)


class Metrics:
    """
    Args:
        statistics: the engine's.
    """

    def __init__(self, statistics: Callable[[], Statistics]):
        disable_created_metrics()  # a second time series for each
        self.registry = CollectorRegistry()
        self._requests = Counter("jittor_lora_requests", "Requests by endpoint and status.", ["endpoint", "status"],
                                 registry=self.registry)
        self._seconds = Histogram("jittor_lora_request_seconds", "From a request's headers to the end of its answer.",
                                  ["endpoint"], buckets=SECONDS, registry=self.registry)
        self._first = Histogram("jittor_lora_first_token_seconds", "From a job's submission to its first piece of text "
                                "or its first span.", buckets=SECONDS, registry=self.registry)
        self.registry.register(_EngineCollector(statistics))
        ProcessCollector(registry=self.registry)

    def watching(self, deliver: Deliver) -> Deliver:
        """A `deliver` for `Engine.submit` that measures, too. To be called in the request's own task: the tokens are
        added to its `Record`."""
        record, began, waits = current.get(), time.monotonic(), True

        def delivering(events: Sequence[Event]) -> None:
            nonlocal waits
            for event in events:
                if waits and isinstance(event, (Piece, Spans)):
                    waits = False
                    self._first.observe(time.monotonic() - began)
                elif isinstance(event, Done) and record is not None:
                    record.add(event)
            deliver(events)

        return delivering

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """Count a request. `endpoint` is one of few: a route's path, not the request's."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)


class MeasuredEngine(Engine):
    """An engine with `metrics`. Jobs are to be submitted in their request's own task."""

    def __init__(self, model: CausalLM, limits: EngineLimits):
        super().__init__(model, limits)
        self.metrics = Metrics(self.statistics)

    def submit(self, job: Job, deliver: Deliver) -> Ticket:
        return super().submit(job, self.metrics.watching(deliver))


class _EngineCollector(Collector):
    def __init__(self, statistics: Callable[[], Statistics]):
        self._statistics = statistics

    def collect(self) -> Iterator[Metric]:
        now = self._statistics()
        yield _labelled(GaugeMetricFamily, "jobs", "Jobs of the engine.", "state",
                        {"running": now.running, "waiting": now.waiting})
        yield GaugeMetricFamily("jittor_lora_texts", "Texts that advance together.", value=now.texts)
        yield _labelled(CounterMetricFamily, "ended_jobs", "Jobs by their end.", "end",
                        {"done": now.done, "cancelled": now.cancelled, "failed": now.failed})
        yield _labelled(CounterMetricFamily, "tokens", "Tokens; those of prompts include the cached ones.", "kind",
                        {"prompt": now.prompt_tokens, "cached": now.cached_tokens, "generated": now.completion_tokens})
        yield CounterMetricFamily("jittor_lora_steps", "Calls of the model.", value=now.steps)
        yield GaugeMetricFamily("jittor_lora_cache_bytes", "Kept keys and values of prefixes.", value=now.cache_bytes)
        yield GaugeMetricFamily("jittor_lora_cache_limit_bytes", "Their limit.", value=now.cache_limit)
        yield GaugeMetricFamily("jittor_lora_cache_hit_ratio", "Share of the prompts' tokens that were cached.",
                                value=now.cached_tokens / max(1, now.prompt_tokens))


def _labelled(kind: type, name: str, text: str, label: str, values: dict[str, int]) -> Metric:
    family = kind(f"jittor_lora_{name}", text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def router(metrics: Metrics) -> APIRouter:
    routes = APIRouter()

    @routes.get("/metrics", summary="Counts and times for Prometheus", response_class=Response)
    async def _metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return routes
