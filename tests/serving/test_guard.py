"""Who may ask: Host, Origin, key, size of a request, and what every answer carries."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import event_loop
from jittor_lora.serving.process.guard import guarded
from jittor_lora.serving.process.health import STOPPING, Health
from jittor_lora.serving.process.hosts import host_and_port, is_loopback, origin_of
from jittor_lora.serving.settings import ServeSettings

KEY = "sk-0123456789"
LOCAL = {"host": "localhost:8000"}
OWN, OTHER = "http://localhost:8000", "https://evil.example"


async def app(scope, receive, send):
    """Answers with the number of bytes of the body."""
    message = await receive()
    if scope["path"] == "/bug":
        raise RuntimeError("a bug")
    headers = [(b"cache-control", b"max-age=60")] if scope["path"] == "/page/page.js" else []
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if scope["path"] == "/bug/late":
        raise RuntimeError("a bug after the first bytes")
    await send({"type": "http.response.body", "body": str(len(message["body"])).encode()})


def ask(settings, method="GET", path="/v1/models", headers=LOCAL, pieces=(b"",), health=None, inner=app):
    """(status, headers, body) of an answer.

    Args:
        headers: a mapping, or pairs if one is repeated.
        pieces: of the body, as they arrive.
    """
    pairs = headers.items() if isinstance(headers, dict) else headers
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
             "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in pairs],
             "client": ("127.0.0.1", 1)}
    incoming = [{"type": "http.request", "body": piece, "more_body": i < len(pieces) - 1}
                for i, piece in enumerate(pieces)]
    sent = []

    async def receive():
        return incoming.pop(0) if incoming else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    event_loop.run(guarded(inner, settings, health or Health())(scope, receive, send))
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent)


def status(*args, **named):
    return ask(*args, **named)[0]


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000",
                                  "[::1]", "localhost.", "model.example", "Model.Example:443"])
def test_hosts_of_this_server(host):
    assert status(ServeSettings(allowed_hosts=("model.example",)), headers={"host": host}) == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example", "evillocalhost", "",
                                  "127.0.0.1.evil.example", "localhost:80:80", "localhost:", "localhost:x", "::1",
                                  "[::1", "192.168.0.7", "169.254.169.254", "user@localhost", "localhost/",
                                  "localhost\x00", "[a]", "localhost:\u00b2", "0.0.0.0:8000",
                                  "localhost, evil.example"])
def test_a_page_under_another_name_reaches_nothing(host):
    code, _, body = ask(ServeSettings(), headers={"host": host})
    assert code == 403 and json.loads(body)["error"]["code"] == "host_not_allowed"


@pytest.mark.parametrize("headers", [[], [("host", "localhost"), ("host", "localhost")]])
def test_one_host_is_needed(headers):
    assert status(ServeSettings(), headers=headers) == 403


@pytest.mark.parametrize(("host", "code"), [("192.168.0.7:8000", 200), ("[fe80::7]:8000", 200), ("localhost", 200),
                                            ("evil.example", 403), ("192.168.0.7.evil.example", 403)])
def test_a_server_for_other_machines_answers_to_addresses(host, code):
    assert status(ServeSettings(host="0.0.0.0"), headers={"host": host}) == code


@pytest.mark.parametrize("origin", [OTHER, "null", "http://localhost:3000", "http://localhost",
                                    "https://localhost:8000.x",
                                    "http://127.0.0.1:8000", "localhost:8000", "file://", "", "chrome-extension://a",
                                    "http://localhost:8000@evil.example"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "DELETE"])
def test_pages_of_other_origins_are_refused(method, origin):
    code, found, body = ask(ServeSettings(), method, headers={**LOCAL, "origin": origin})
    assert code == 403 and json.loads(body)["error"]["code"] == "origin_not_allowed"
    assert not [name for name in found if name.startswith("access-control")]


@pytest.mark.parametrize(("host", "origin"), [("localhost:8000", OWN), ("LocalHost:8000", OWN),
                                              ("[::1]:80", "http://[::1]"),
                                              ("localhost", "http://localhost"), ("localhost", "https://localhost")])
def test_the_own_page_is_not(host, origin):
    assert status(ServeSettings(), "POST", headers={"host": host, "origin": origin}) == 200


@pytest.mark.parametrize(("method", "site", "mode", "code"), [
    ("GET", "same-origin", "cors", 200), ("GET", "none", "navigate", 200), ("GET", "cross-site", "navigate", 200),
    ("GET", "cross-site", "no-cors", 403), ("GET", "same-site", "no-cors", 403),
    ("POST", "cross-site", "navigate", 403),
])
def test_images_and_scripts_of_other_pages_are_refused(method, site, mode, code):
    assert status(ServeSettings(), method, headers={**LOCAL, "sec-fetch-site": site, "sec-fetch-mode": mode}) == code


def test_a_named_origin_is_answered():
    settings = ServeSettings(cors_origins=(OTHER,), api_key=KEY)
    preflight = {**LOCAL, "origin": OTHER, "access-control-request-method": "POST",
                 "access-control-request-headers": "authorization,x-stainless-os"}
    code, found, body = ask(settings, "OPTIONS", headers=preflight)
    assert code == 204 and body == b"" and "content-length" not in found
    assert found["access-control-allow-origin"] == OTHER and found["vary"] == "Origin"
    assert found["access-control-allow-headers"] == "authorization,x-stainless-os"
    assert "POST" in found["access-control-allow-methods"]
    assert "access-control-allow-credentials" not in found
    code, found, _ = ask(settings, "POST", headers={**LOCAL, "origin": OTHER})
    assert code == 401 and found["access-control-allow-origin"] == OTHER  # the page may read why
    code, found, _ = ask(settings, "POST", headers={**LOCAL, "origin": OTHER, "authorization": f"Bearer {KEY}"})
    assert code == 200 and found["access-control-allow-origin"] == OTHER
    assert status(settings, "POST", headers={**LOCAL, "origin": "https://evil.example:444"}) == 403


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer ", KEY, f"Basic {KEY}", f"Bearer {KEY}x",
                                   f"Bearer x{KEY}", f"Bearer {KEY[:-1]}", f"Bearer {KEY.upper()}",
                                   f"Bearer {KEY},{KEY}", "Bearer \xff"])
def test_a_wrong_key_learns_nothing(given):
    settings = ServeSettings(api_key=KEY)
    headers = LOCAL if given is None else {**LOCAL, "authorization": given}
    none = ask(settings, path="/no/such/page")
    assert none[0] == 401 and none[1]["www-authenticate"] == "Bearer" and KEY.encode() not in none[2]
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/completions"), ("GET", "/metrics"),
                         ("GET", "/openapi.json"), ("POST", "/"),
                         ("GET", "/ui/runs"), ("GET", "//"), ("GET", "/page"), ("GET", "/health/")):
        assert ask(settings, method, path, headers) == none
    assert ask(settings, "POST", headers={**headers, "content-length": "99999999999"}) == none
    repeated = [*LOCAL.items(), ("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}")]
    assert ask(settings, headers=repeated) == none


@pytest.mark.parametrize("given", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER  {KEY}"])
def test_the_key_opens(given):
    assert status(ServeSettings(api_key=KEY), headers={**LOCAL, "authorization": given}) == 200


@pytest.mark.parametrize("path", ["/", "/page/page.js", "/health"])
def test_the_page_itself_is_open_to_ask_for_the_key(path):
    assert status(ServeSettings(api_key=KEY), path=path) == 200
    assert status(ServeSettings(api_key=KEY), path=path, headers={"host": "evil.example"}) == 403


@pytest.mark.parametrize("pieces", [[b"x" * 1000], [b"x"] * 1000, [b"", b"x" * 999, b"", b"x"]])
def test_a_body_may_be_as_large_as_the_limit(pieces):
    assert ask(ServeSettings(max_body_bytes=1000), "POST", pieces=pieces)[2] == b"1000"


@pytest.mark.parametrize("pieces", [[b"x" * 1001], [b"x"] * 1001, [b"x" * 600] * 10_000])
def test_a_larger_one_is_refused_while_it_comes_in(pieces):
    code, _, body = ask(ServeSettings(max_body_bytes=1000), "POST", pieces=pieces)
    assert code == 413 and json.loads(body)["error"]["code"] == "body_too_large"


@pytest.mark.parametrize("length", ["1001", "99999999999999999999999999"])
def test_or_before(length):
    def unread(scope, receive, send):
        raise AssertionError

    assert status(ServeSettings(max_body_bytes=1000), "POST", headers={**LOCAL, "content-length": length},
                  inner=unread) == 413


def test_all_requests_together_hold_a_limited_number_of_bytes():
    inside = []

    async def holding(scope, receive, send):
        await receive()
        inside.append(1)
        await asyncio.Event().wait()

    async def one(guard, sent):
        async def receive():
            return {"type": "http.request", "body": b"x" * 1000, "more_body": False}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"host", b"localhost")]}
        await guard(scope, receive, send)

    async def many():
        guard, sent = guarded(holding, ServeSettings(max_body_bytes=1000), Health()), []
        tasks = [asyncio.ensure_future(one(guard, sent)) for _ in range(40)]
        await asyncio.sleep(0.05)
        held = len(inside)
        refused = [message["status"] for message in sent if "status" in message]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        del inside[:], sent[:]
        again = asyncio.ensure_future(one(guard, sent))  # what was held is free again
        await asyncio.sleep(0.05)
        again.cancel()
        return held, refused, len(inside)

    assert event_loop.run(many()) == (16, [429] * 24, 1)


def test_a_server_that_stops_takes_no_new_requests():
    health = Health()
    health.status = STOPPING
    code, found, body = ask(ServeSettings(), "POST", health=health)
    assert code == 503 and found["retry-after"] == "5" and found["connection"] == "close"
    assert json.loads(body)["error"] == {"message": "The server is stopping.", "type": "server_error", "param": None,
                                         "code": "stopping"}
    assert status(ServeSettings(), path="/health", health=health) == 200  # the app's own answer


@pytest.mark.parametrize("headers", [LOCAL, {"host": "evil.example"}, {**LOCAL, "origin": OTHER}])
@pytest.mark.parametrize("path", ["/v1/models", "/page/page.js", "/bug"])
def test_every_answer_is_guarded(path, headers, capsys):
    _, found, _ = ask(ServeSettings(), path=path, headers=headers)
    assert found["content-security-policy"].startswith("default-src 'none'; script-src 'self'; ")
    assert "unsafe" not in found["content-security-policy"]
    assert found["x-content-type-options"] == "nosniff" and found["referrer-policy"] == "no-referrer"
    assert found["cross-origin-resource-policy"] == found["cross-origin-opener-policy"] == "same-origin"
    assert found["cache-control"] == ("max-age=60" if headers is LOCAL and path.endswith(".js") else "no-store")


def test_a_bug_is_answered_and_reported(capsys):
    code, _, body = ask(ServeSettings(), path="/bug")
    assert code == 500 and json.loads(body)["error"]["type"] == "server_error" and b"a bug" not in body
    assert "RuntimeError: a bug" in capsys.readouterr().err
    with pytest.raises(RuntimeError):  # the connection is closed: the answer is not complete
        ask(ServeSettings(), path="/bug/late")


def test_too_many_headers():
    assert status(ServeSettings(), headers=[*LOCAL.items(), *(("x", "y") for _ in range(100))]) == 431


def test_websockets_are_refused():
    sent = []

    async def send(message):
        sent.append(message["type"])

    event_loop.run(guarded(app, ServeSettings(), Health())({"type": "websocket", "headers": []}, None, send))
    assert sent == ["websocket.close"]


TEXTS = st.text(st.characters(max_codepoint=255), max_size=30)
NAMES = st.sampled_from(["host", "origin", "authorization", "content-length", "sec-fetch-site", "sec-fetch-mode",
                         "access-control-request-method", "access-control-request-headers", "x"])


@given(st.lists(st.tuples(NAMES, TEXTS), max_size=8), st.sampled_from(["GET", "POST", "OPTIONS", "BREW"]), TEXTS)
def test_no_headers_open_a_server_with_a_key_or_break_it(headers, method, path):
    settings = ServeSettings(api_key=KEY, cors_origins=(OTHER,))
    code, found, body = ask(settings, method, "/v1/" + path, [("host", "localhost"), *headers])
    assert code in (401, 403) or code == 204 and method == "OPTIONS" and ("origin", OTHER) in headers
    assert KEY.encode() not in body and "content-security-policy" in found


@given(TEXTS)
def test_only_known_names_are_hosts(text):
    code = status(ServeSettings(), headers={"host": text})
    found = host_and_port(text.strip())
    assert (code == 200) == (found is not None and found[0] in ("localhost", "127.0.0.1", "::1"))


@given(st.sampled_from(["localhost", "model.example", "10.0.0.1", "[::1]"]), st.integers(0, 99999))
def test_hosts_and_origins_are_read_back(host, port):
    bare = host.strip("[]")
    assert host_and_port(f"{host}:{port}") == (bare, port) and host_and_port(host) == (bare, None)
    assert origin_of(f"https://{host}:{port}") == ("https", bare, port or 443)
    assert origin_of(f"http://{host}") == ("http", bare, 80) and origin_of(f"ftp://{host}") is None


@pytest.mark.parametrize(("host", "local"), [("localhost", True), ("127.0.0.1", True), ("127.9.9.9", True),
                                             ("::1", True), ("0.0.0.0", False), ("::", False),
                                             ("192.168.0.1", False), ("lab", False)])
def test_loopback(host, local):
    assert is_loopback(host) is local
