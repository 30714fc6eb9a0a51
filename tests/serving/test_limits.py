"""Clients that go, a server that is busy, slow or stops."""

from __future__ import annotations

import contextlib
import json
import socket
import threading

import pytest

from jittor_lora.serving.compute.engine import EngineLimits
from jittor_lora.serving.settings import ServeSettings
from serving import served

# Takes some seconds
LONG = {"model": served.BASE, "prompt": "The town", "n": 100, "min_tokens": 240, "max_tokens": 240}
SHORT = {"model": served.BASE, "prompt": "The town", "max_tokens": 2}
PATH = "/v1/completions"


@contextlib.contextmanager
def hung_up(server, **fields):
    """A connection on which this was asked; closed afterwards, whether an answer came or not."""
    body = json.dumps(fields).encode()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                           f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        yield connection


def statistics(server):
    return server.service.engine.statistics()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_stops_its_texts(served_files, stream):
    with served.running(served_files, limits=EngineLimits(batch_size=4), adapters=()) as server:
        with hung_up(server, **LONG, stream=stream) as connection:
            served.until(lambda: statistics(server).running == 1)
            if stream:
                assert b"data: " in connection.recv(1000) + connection.recv(1000)
        served.until(lambda: statistics(server).cancelled == 1, 2)
        served.until(lambda: statistics(server).running == 0, 2)
        assert server.post(PATH, **SHORT).status_code == 200


def test_clients_that_go_at_random(served_files):
    with served.running(served_files, limits=EngineLimits(batch_size=4), adapters=()) as server:
        for number in range(12):
            with hung_up(server, **{**LONG, "n": 4}, stream=number % 2 == 0) as connection:
                connection.settimeout(0.02 * number)
                with contextlib.suppress(OSError):
                    connection.recv(10_000)
        found = server.together([lambda: server.answer(PATH, **SHORT, temperature=0)] * 6)
        assert len({answer["choices"][0]["text"] for answer in found}) == 1
        served.until(lambda: statistics(server).running == statistics(server).waiting == 0, 5)


def test_too_many_wait(served_files):
    limits = EngineLimits(batch_size=1, waiting=2)
    with served.running(served_files, limits=limits, adapters=()) as server, contextlib.ExitStack() as stack:
        stack.enter_context(hung_up(server, **LONG))
        served.until(lambda: statistics(server).running == 1)
        for _ in range(2):
            stack.enter_context(hung_up(server, **LONG))
        served.until(lambda: statistics(server).waiting == 2)
        response = server.post(PATH, **SHORT)
        assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
        assert response.json()["error"]["code"] == "rate_limit_exceeded"
        response = server.post(PATH, **SHORT, stream=True)
        assert response.status_code == 429
        stack.close()
        served.until(lambda: statistics(server).running == statistics(server).waiting == 0, 5)
        assert server.post(PATH, **SHORT).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long(served_files, stream):
    with served.running(served_files, limits=EngineLimits(batch_size=4, seconds=0.3), adapters=()) as server:
        response = server.post(PATH, **LONG, stream=stream)
        if stream:
            assert response.status_code == 200
            last = json.loads(response.text.strip().splitlines()[-1].removeprefix("data: "))
        else:
            assert response.status_code == 504
            last = response.json()
        assert last["error"]["code"] == "timeout" and last["error"]["type"] == "server_error"
        assert server.post(PATH, **SHORT).status_code == 200


def test_a_server_that_stops(served_files):
    with served.running(served_files, limits=EngineLimits(batch_size=4), adapters=()) as server:
        found = []
        asking = [threading.Thread(target=lambda stream=stream: found.append(server.post(PATH, **LONG, stream=stream)))
                  for stream in (False, True)]
        for thread in asking:
            thread.start()
        served.until(lambda: statistics(server).texts > 0 and statistics(server).waiting == 1)
        server.service.engine.stop(0.2)
        response = server.post(PATH, **SHORT)
        assert response.status_code == 503 and response.json()["error"]["code"] == "stopping"
        assert "retry-after" in response.headers
        for thread in asking:
            thread.join(10)
        assert sorted(response.status_code for response in found) in ([200, 503], [503, 503])
        assert all('"code":"stopping"' in response.text and "[DONE]" not in response.text for response in found)


def test_limits_of_the_settings(served_files):
    settings = ServeSettings(max_prompt_tokens=10, max_tokens=5, max_texts=2)
    with served.running(served_files, settings, adapters=()) as server:
        ask = {"model": served.BASE, "prompt": [1] * 10, "max_tokens": 5}
        assert server.post(PATH, **ask).status_code == 200
        assert "at most 10 tokens; found 11" in server.error(PATH, 400, **{**ask, "prompt": [1] * 11})["message"]
        assert "at most 5; found 6" in server.error(PATH, 400, **{**ask, "max_tokens": 6})["message"]
        assert "at most 2 texts; found 4" in server.error(PATH, 400, **{**ask, "prompt": ["a"] * 4})["message"]
        assert server.error("/v1/answers", 400, context="a", question="b", max_tokens=5)["code"] == (
            "context_length_exceeded")


def test_an_error_within_the_engine(served_files, monkeypatch):
    """A bug is told as one, and the server goes on."""
    with served.running(served_files, adapters=()) as server:
        real = server.service.served
        monkeypatch.setattr(server.service, "served", lambda name: 1 / 0)
        response = server.post(PATH, **SHORT)
        assert response.status_code == 500 and response.json()["error"]["type"] == "server_error"
        assert "ZeroDivisionError" not in response.text
        monkeypatch.setattr(server.service, "served", real)
        assert server.post(PATH, **SHORT).status_code == 200


def test_the_event_loop_does_not_wait_for_what_is_computed(server):
    """Nor for texts that take long to encode."""
    go_on = threading.Event()
    computing = server.service.engine.call(go_on.wait)
    server.service._encoding.submit(go_on.wait)
    asked = threading.Thread(target=lambda: server.answer(PATH, **SHORT))
    asked.start()
    try:
        for _ in range(20):
            assert server.client.get("/v1/models", timeout=2).status_code == 200
        assert asked.is_alive() and not computing.done()
    finally:
        go_on.set()
        asked.join(30)
    assert not asked.is_alive()


def test_too_many_texts_to_encode(served_files):
    settings = ServeSettings(waiting=2)
    with served.running(served_files, settings, adapters=()) as server, contextlib.ExitStack() as stack:
        go_on = threading.Event()
        server.service._encoding.submit(go_on.wait)
        for _ in range(2):
            stack.enter_context(hung_up(server, **SHORT))
        served.until(lambda: server.service._in_encoding == 2)
        assert server.post(PATH, **SHORT).status_code == 429
        stack.close()  # who has gone does not wait
        served.until(lambda: server.service._in_encoding == 0)
        go_on.set()
        assert server.post(PATH, **SHORT).status_code == 200
        served.until(lambda: statistics(server).done == 1 and statistics(server).running == 0)
        assert statistics(server).cancelled == 0  # they never reached the engine
