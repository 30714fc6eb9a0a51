"""A server over a tiny base with adapters: the engine in one thread, uvicorn in another, on a free port."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

import httpx
import uvicorn

import model_files
import small_run
import tiny
from jittor_lora.data.named_templates import named_source
from jittor_lora.formats.byte_level import END_OF_TEXT
from jittor_lora.lora.config import LoraConfig
from jittor_lora.serving.api.app import create_app
from jittor_lora.serving.compute.engine import Engine, EngineLimits
from jittor_lora.serving.models import Models
from jittor_lora.serving.service import Service
from jittor_lora.serving.settings import ServeSettings
from jittor_lora.session import load

CONTEXT = "The town has 42 houses. Its river is the Elbe, and the café opens at 10."
QUESTIONS = ["How many houses?", "Which river?", "When does the café open?"]
BASE = "tiny"  # the name of the base
LLAMA = {**model_files.LLAMA, "max_position_embeddings": 512, "bos_token_id": 299, "eos_token_id": 299}


def make_base(folder: Path, chat: bool = True, config: dict = small_run.GPT2) -> Path:
    """A base of 50,000 parameters, with GPT-2's chat template unless it has none."""
    small_run.make_base(folder, config)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END_OF_TEXT}))
    if chat:
        (folder / "chat_template.jinja").write_text(named_source("gpt2", False))
    return folder


def make_adapter(folder: Path, base: Path, seed: int, rank: int = 4, label_smoothing: float = 0.0) -> Path:
    """An adapter that changes texts; one that has learnt smoothed labels says so."""
    session = load(str(base))
    adapter = session.add_adapter(LoraConfig(r=rank, target_modules=("c_attn", "c_fc")), seed=seed)
    shapes = {name: parameter.shape for name, parameter in adapter.parameters().items()}
    adapter.load(tiny.adapter_arrays({name: tuple(shape) for name, shape in shapes.items()}, seed))
    if label_smoothing:
        session.set_prompting(replace(session.base_prompting, label_smoothing=label_smoothing))
    session.save_adapter(folder)
    return folder


def make_files(folder: Path, adapters: int = 3, chat: bool = True, config: dict = small_run.GPT2) -> Path:
    """`base`, and `adapters/one`, `two` … to `folder`."""
    base = make_base(folder / "base", chat, config)
    for seed, name in enumerate(("one", "two", "three", "four")[:adapters], 1):
        make_adapter(folder / "adapters" / name, base, seed, label_smoothing=0.2 if name == "two" else 0.0)
    return folder


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@dataclass
class Running:
    """A server that runs."""

    service: Service
    url: str
    client: httpx.Client

    def post(self, path: str, **fields: Any) -> httpx.Response:
        return self.client.post(path, json=fields)

    def answer(self, path: str, **fields: Any) -> Any:
        """The JSON of a response that must be right."""
        response = self.post(path, **fields)
        assert response.status_code == 200, response.text
        return response.json()

    def chunks(self, path: str, **fields: Any) -> list[Any]:
        """Those of a stream, without [DONE], which must be its end."""
        with self.client.stream("POST", path, json={**fields, "stream": True}) as response:
            assert response.status_code == 200, response.read()
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = [line[len("data: "):] for line in response.iter_lines() if line.startswith("data: ")]
        assert lines.pop() == "[DONE]"
        return [json.loads(line) for line in lines]

    def together(self, calls: list[Callable[[], Any]]) -> list[Any]:
        """What these return, called at once."""
        with ThreadPoolExecutor(len(calls)) as pool:
            return [future.result() for future in [pool.submit(call) for call in calls]]

    def computed(self, function: Callable[[], Any]) -> Any:
        """What a function returns in the engine's thread."""
        return self.service.engine.call(function).result(timeout=120)

    def error(self, path: str, status: int, **fields: Any) -> dict[str, Any]:
        """The error of a request that must be refused so."""
        response = self.post(path, **fields)
        assert response.status_code == status, response.text
        return response.json()["error"]


@contextmanager
def running(folder: Path, settings: Optional[ServeSettings] = None, limits: Optional[EngineLimits] = None,
            adapters: tuple[str, ...] = ("one", "two", "three"),
            app_of: Callable[[Service], Any] = create_app) -> Iterator[Running]:
    """A server over the files that `make_files` wrote to `folder`."""
    settings, limits = settings or ServeSettings(), limits or EngineLimits()
    session = load(str(folder / "base"))
    models = Models(session, BASE)
    for name in adapters:
        models.load(name, folder / "adapters" / name)
    service = Service(session, Engine(session.model, limits), models, settings)
    computing = threading.Thread(target=service.engine.run, daemon=True)
    computing.start()
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app_of(service), "127.0.0.1", port, log_level="warning", lifespan="off"))
    listening = threading.Thread(target=server.run, daemon=True)
    listening.start()
    service.engine.call(lambda: None).result()  # kernels may be compiled first
    until(lambda: server.started)
    url = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(base_url=url, timeout=120) as client:
            yield Running(service, url, client)
    finally:
        service.engine.stop(0)
        computing.join(30)
        server.should_exit = True
        listening.join(30)
        service.close()


def until(true: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)
