"""The process: signals, drained streams, bugs of either thread, connections that take their time."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PROGRAM = Path(__file__).with_name("slow_server.py")


class Process:
    """A server in a process of its own; `url` is None if it did not come up."""

    def __init__(self, log, *arguments, **environ):
        self._log = log
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environ}
        with log.open("w") as err:
            self.process = subprocess.Popen([sys.executable, PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=err,
                                            text=True, env=environ)
        self.url = self.process.stdout.readline().strip() or None

    @property
    def log(self):
        return self._log.read_text()

    @property
    def port(self):
        return int(self.url.rpartition(":")[2])

    def signal(self, number):
        self.process.send_signal(number)

    def ended(self, seconds=20):
        """(exit code, standard error)"""
        self.process.communicate(timeout=seconds)
        return self.process.returncode, self.log

    def get(self, path, **headers):
        return httpx.get(self.url + path, headers=headers, timeout=20)

    @contextlib.contextmanager
    def streaming(self, ticks):
        """The lines of a stream that has begun."""
        with httpx.stream("GET", f"{self.url}/stream?ticks={ticks}", timeout=20) as response:
            lines = response.iter_lines()
            assert next(lines) == "Piece"
            yield lines


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    started = []

    def starting(*arguments, **environ):
        started.append(Process(tmp_path_factory.mktemp("log") / "err", *map(str, arguments), **environ))
        return started[-1]

    yield starting
    for server in started:
        server.process.kill()
        server.process.communicate()


@pytest.fixture(scope="module")
def shared(start):
    """A server, among variables that are meant for others."""
    return start(WEB_CONCURRENCY="many", FORWARDED_ALLOW_IPS="*")


def until(true, seconds=10):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_answers_end(number, start):
    server = start(60)
    assert server.get("/health").json()["status"] == "ok"
    with server.streaming(200) as lines:
        server.signal(number)
        until(lambda: server.get("/health").json()["status"] == "stopping")
        refused = server.get("/stream?ticks=1")
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "stopping"
        assert server.get("/health").status_code == 503 and server.get("/metrics").status_code == 200
        assert list(lines) == ["Piece"] * 199 + ["Done"]
    code, err = server.ended()
    assert code == 0 and "Stopping: running requests have 60 seconds" in err and "Traceback" not in err


def test_what_does_not_end_in_time_is_told_so(start):
    server = start(0.3)
    with server.streaming(100_000) as lines:
        server.signal(signal.SIGTERM)
        assert list(lines)[-1] == "Failed"
    assert server.ended()[0] == 0


def test_a_second_signal_ends_at_once(start):
    server = start(60)
    with server.streaming(100_000) as lines:
        server.signal(signal.SIGINT)
        until(lambda: server.get("/health").status_code == 503)
        began = time.monotonic()
        server.signal(signal.SIGINT)
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
    assert server.ended()[0] == 130 and time.monotonic() - began < 5


def test_an_idle_server_ends_at_once_and_idle_connections_do_not_keep_it(start):
    ctrl_c = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for jobs in the background
    try:
        server = start(60)
    finally:
        signal.signal(signal.SIGINT, ctrl_c)
    with httpx.Client(base_url=server.url) as client:
        client.get("/health")
        server.signal(signal.SIGINT)
        time.sleep(0.3)
        assert client.get("/health").json()["status"] == "ok"
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.ended()[0] == 0 and time.monotonic() - began < 5


def test_a_bug_of_the_engine_ends_the_process(start):
    server = start(60)
    with server.streaming(100_000) as lines:
        with contextlib.suppress(httpx.HTTPError):
            server.get("/stream?ticks=-1")
        with contextlib.suppress(httpx.HTTPError):
            list(lines)
    code, err = server.ended()
    assert code == 1 and "RuntimeError: a bug of the engine" in err


def test_a_bug_at_the_start_of_the_app_ends_the_process(start):
    server = start(60, "lifespan")
    assert server.url is None
    code, err = server.ended()
    assert code == 1 and "RuntimeError: a bug at the start" in err and "the HTTP server did not start" in err


def test_killed_and_started_again(start):
    server = start()
    with server.streaming(100_000) as lines:
        server.process.kill()
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
    assert start().get("/health").json()["status"] == "ok"


def test_the_log_has_a_line_for_each_request_and_no_secrets(shared):
    before = len(shared.log)
    shared.get("/stream?ticks=2&secret=s3cret", authorization="Bearer s3cret")
    shared.get("/no%0A%1B[31mpage", **{"x-forwarded-for": "10.9.8.7"})
    httpx.post(shared.url + "/length", json={"text": "s3cret"})
    httpx.post(shared.url + "/length", content=b"x" * 20_000)
    with socket.create_connection(("127.0.0.1", shared.port)) as gone:
        gone.sendall(b"GET /stream?ticks=100 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        gone.recv(1)
    until(lambda: "client gone" in shared.log)
    new = shared.log[before:]
    lines = [re.sub(r"^\S+ ", "", re.sub(r"\d+ ms", "1 ms", line)) for line in new.splitlines()]
    assert lines == ["127.0.0.1 GET /stream 200 1 ms 7 + 5 tokens, 3 cached",
                     "127.0.0.1 GET /no%0A%1B[31mpage 404 1 ms", "127.0.0.1 POST /length 200 1 ms",
                     "127.0.0.1 POST /length 413 1 ms", "127.0.0.1 GET /stream 200 1 ms client gone"]


def test_metrics_count_by_route_and_status(shared):
    def samples():
        found = shared.get("/metrics")
        assert found.headers["content-type"].startswith("text/plain; version=")
        return {name: float(value)
                for name, value in re.findall(r"^([^#\s]\S*) (\S+)$", found.text, re.MULTILINE)}

    before = samples()
    shared.get("/stream?ticks=2")
    for page in range(3):
        shared.get(f"/no/page/{page}")
    shared.get("/health", host="evil.example")
    after = samples()

    def more(name):
        return after[name] - before.get(name, 0)

    assert more('jittor_lora_requests_total{endpoint="/stream",status="200"}') == 1
    assert more('jittor_lora_requests_total{endpoint="other",status="404"}') == 3
    assert more('jittor_lora_requests_total{endpoint="other",status="403"}') == 1
    assert more("jittor_lora_first_token_seconds_count") == 1
    assert 0 < more("jittor_lora_first_token_seconds_sum") < 5
    assert 0.01 < more('jittor_lora_request_seconds_sum{endpoint="/stream"}') < 10
    assert not [name for name in after if "_created" in name or "/no/page" in name]


def test_a_large_request_is_refused_while_the_client_still_sends(shared):
    for content in (b"x" * (1 << 22), (b"x" * 1000 for _ in range(4000))):
        found = httpx.post(shared.url + "/length", content=content, timeout=20)
        assert found.status_code == 413 and found.json()["error"]["code"] == "body_too_large"


def test_many_clients_that_hang_up_leave_a_server_that_answers(shared):
    def hang_up(number):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", shared.port)) as client:
            request = b"GET /stream?ticks=20 HTTP/1.1\r\nHost: localhost\r\n\r\n"
            client.sendall(request[: len(request) - number % len(request)])
            if number % 2:
                client.recv(64)

    threads = [threading.Thread(target=hang_up, args=(number,)) for number in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shared.get("/stream?ticks=3").text.splitlines() == ["Piece"] * 3 + ["Done"]


def raw(server, data, seconds=10):
    """What comes back for these bytes until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as client:
        found = b""
        with contextlib.suppress(ConnectionError):
            client.sendall(data)
            try:
                client.shutdown(socket.SHUT_WR)
            except OSError as error:
                assert error.errno == errno.ENOTCONN, error  # the server was done, and closed it
            while piece := client.recv(1 << 16):
                found += piece
        return found


LINES = st.one_of(
    st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"")),
    st.tuples(st.sampled_from([b"Host", b"host", b"Content-Length", b"Transfer-Encoding", b"Origin", b"Authorization",
                               b"Connection", b"Expect", b"Upgrade", b"Cookie", b"X"]),
              st.sampled_from([b"localhost", b"0", b"5", b"-1", b"1e3", b"99999999999999999999", b"chunked", b"gzip",
                               b"null", b"close", b"100-continue", b"websocket", b"x" * 70_000, b"\xff\xfe", b""])
              ).map(b": ".join))
STARTS = st.one_of(st.sampled_from([
    b"GET /health HTTP/1.1", b"POST /length HTTP/1.1", b"GET /health HTTP/1.0", b"GET http://evil/ HTTP/1.1",
    b"OPTIONS * HTTP/1.1", b"CONNECT evil:80 HTTP/1.1", b"GET /%ff%00/..%2f HTTP/1.1", b"GET  / HTTP/1.1", b"GET /",
    b"PRI * HTTP/2.0", b"GET /" + b"x" * 70_000 + b" HTTP/1.1", b"\x16\x03\x01\x02\x00"]), st.binary(max_size=40))


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(STARTS, st.lists(LINES, max_size=6), st.binary(max_size=60), st.booleans())
def test_no_bytes_break_the_server(shared, start_line, lines, body, ended):
    found = raw(shared, b"\r\n".join([start_line, *lines, b""]) + (b"\r\n" + body if ended else b""))
    statuses = re.findall(rb"HTTP/1.1 (\d+) ", found)
    assert not [status for status in statuses if status >= b"500"], found
    assert shared.process.poll() is None and "Traceback" not in shared.log


@pytest.mark.slow
def test_clients_that_take_their_time_are_left(start):
    server = start(60, "impatient")

    def seconds_open(first, more=b""):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            began = time.monotonic()
            client.sendall(first)
            client.settimeout(0.2)
            while time.monotonic() - began < 10:
                with contextlib.suppress(socket.timeout):
                    try:
                        if not client.recv(1 << 16):
                            break
                        began = time.monotonic()
                    except ConnectionError:
                        break
                with contextlib.suppress(ConnectionError):
                    client.sendall(more)
            return time.monotonic() - began

    head = b"POST /length HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    assert 0.5 < seconds_open(b"") < 3  # says nothing
    assert 0.5 < seconds_open(b"GET /health HTTP/1.1\r\n", b"X: y\r\n") < 3  # a header at a time
    assert 1.5 < seconds_open(head + b"Content-Length: 9000\r\n\r\n", b" ") < 5  # a byte of the body at a time
    assert 1.5 < seconds_open(head + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n") < 5
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:  # reads nothing
        client.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(lambda: "GET /large 200" in server.log)
    others = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
    assert server.get("/health").status_code == 503  # more connections than it has
    for other in others:
        other.close()
    until(lambda: server.get("/health").status_code == 200)
    with server.streaming(150) as lines:  # an answer may take long
        assert list(lines)[-1] == "Done"
