"""From the command line's settings to a server that answers."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import threading
import webbrowser
from collections.abc import Callable, Sequence
from typing import Union

from jittor_lora.formats.adapter_source import AdapterSource
from jittor_lora.formats.base_record import WantedBase
from jittor_lora.lora.inject import DEFAULT
from jittor_lora.serving.api.app import create_app
from jittor_lora.serving.compute.engine import EngineLimits
from jittor_lora.serving.models import Models
from jittor_lora.serving.process import listening
from jittor_lora.serving.process.access_log import Logged
from jittor_lora.serving.process.asgi import App
from jittor_lora.serving.process.guard import guarded
from jittor_lora.serving.process.health import Health
from jittor_lora.serving.process.health import router as health_router
from jittor_lora.serving.process.log import Log
from jittor_lora.serving.process.metrics import MeasuredEngine, Metrics
from jittor_lora.serving.process.metrics import router as metrics_router
from jittor_lora.serving.process.server import Server
from jittor_lora.serving.service import Service
from jittor_lora.serving.settings import ServeSettings
from jittor_lora.session import load
from jittor_lora.system.runtime import environment


def serve(base: Union[str, WantedBase], adapters: Sequence[tuple[str, AdapterSource]], settings: ServeSettings,
          precision: str, set_threads: Callable[[], None], browser: bool, base_precision: str = "auto") -> None:
    """Load and serve until a signal. To be called from the main thread.

    Args:
        adapters: (name, adapter) each; the first may add tokens to the vocabulary.

    Raises:
        UserError: the port cannot be used, or something cannot be loaded.
    """
    with contextlib.closing(listening.bound(settings.host, settings.port)) as listener:
        set_threads()
        session = load(base, adapters[0][1] if adapters else None, precision, base_precision)
        models = Models(session)
        for number, (name, source) in enumerate(adapters):
            if number:
                models.load(name, source)
            else:
                models.adopt(name, DEFAULT, source.folder)
        engine = MeasuredEngine(session.model, EngineLimits(
            batch_size=settings.batch_size, waiting=settings.waiting, cache_bytes=settings.cache_bytes,
            running_bytes=settings.running_bytes, seconds=settings.request_seconds))
        engine.prepare([served.adapter for served in models.values()])
        log, health = Log(), Health()
        service = Service(session, engine, models, settings)
        listening.listen(listener)
        place = listening.url(listener)
        server = Server(whole_app(service, engine.metrics, health, log), engine, listener, settings.drain_seconds,
                        health, log)
        try:
            server.run(lambda: _say(place, models, settings, browser))
        finally:
            service.close()


def whole_app(service: Service, metrics: Metrics, health: Health, log: Log) -> App:
    """The app with what every server needs around it."""
    app, settings = create_app(service), service.settings
    app.include_router(health_router(health, service.models.base if settings.api_key is None else None))
    app.include_router(metrics_router(metrics))
    return Logged(guarded(app, settings, health), metrics, log, settings.log_texts)


def _say(place: str, models: Models, settings: ServeSettings, browser: bool) -> None:
    name = list(models)[-1]
    question = {"model": name, "context": "Jittor was released by Tsinghua University in 2020.",
                "question": "Who released Jittor?"}
    key = '-H "Authorization: Bearer KEY" ' if settings.api_key else ""
    print(f"Serving {', '.join(models)} at {place}\nCtrl-C stops it. Ask on the page, or:\n"
          f"  curl {place}/v1/answers {key}-H \"Content-Type: application/json\" \\\n"
          f"    -d {shlex.quote(json.dumps(question))}", flush=True)
    if browser and sys.stdout.isatty() and any(environment().get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")):
        threading.Thread(target=webbrowser.open, args=(place,), daemon=True).start()  # may wait for the browser
