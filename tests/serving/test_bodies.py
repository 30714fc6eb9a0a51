"""Bodies and paths that are wrong: an error in OpenAI's form, never 500."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving import served

PATHS = ["/v1/completions", "/v1/chat/completions", "/v1/answers", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"]
JSON = {"Content-Type": "application/json"}
TYPES = {400: "invalid_request_error", 404: "invalid_request_error", 405: "invalid_request_error",
         415: "invalid_request_error"}


def error_of(response, status):
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"error"} and body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["type"] == TYPES[status] and body["error"]["message"]
    return body["error"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("body, message", [
    (b"", "expected a JSON object; found nothing"),
    (b"{", "expected JSON: "),
    (b"[1]", "expected an object; found a list of 1"),
    (b"null", "expected an object; found null"),
    (b'"model"', 'expected an object; found "model"'),
    (b'{"a": NaN}', "NaN is not a number that JSON has"),
    (b'{"a": -Infinity}', "-Infinity is not a number that JSON has"),
    (b'{"a": 1, "a": 2}', "the key 'a' occurs twice"),
    (b'{"model": "\\ud83d"}', "half a surrogate pair, \\ud83d"),
    (b'{"model": ' + b"9" * 5000 + b"}", "a number of 5,000 digits"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"a":' * 200 + b"1" + b"}" * 200, "nested too deeply"),
    ('{"prompt": "北京"}'.encode("gbk"), "expected JSON in UTF-8; found the byte 0xb1 at 12"),
    (json.dumps({"model": "one"}).encode("utf-16"), "expected JSON in UTF-8"),
    (b"\xef\xbb\xbf{}", "expected JSON"),
])
def test_not_json(server, path, body, message):
    assert message in error_of(server.client.post(path, content=body, headers=JSON), 400)["message"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonp",
                                  "multipart/form-data; boundary=a"])
def test_other_content_types(server, path, kind):
    """A page elsewhere may send these without asking the server first."""
    headers = {} if kind is None else {"Content-Type": kind}
    found = error_of(server.client.post(path, content=b"{}", headers=headers), 415)
    assert "expected application/json" in found["message"]


def test_a_content_type_with_its_encoding(server):
    body = json.dumps({"model": "one", "prompt": "é"}, ensure_ascii=False).encode()
    for kind in ("application/json; charset=utf-8", "Application/JSON"):
        assert server.client.post(PATHS[0], content=body, headers={"Content-Type": kind}).status_code == 200


def test_no_such_page_and_other_methods(server):
    assert "no such page" in error_of(server.client.get("/v1/nothing"), 404)["message"]
    for path in PATHS:
        response = server.client.get(path)
        assert "expected POST; found GET" in error_of(response, 405)["message"]
        assert response.headers["allow"] == "POST"
    assert error_of(server.client.post("/v1/models"), 405)


def test_models(server):
    listed = server.client.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == [served.BASE, "one", "two", "three"]
    for model in listed["data"]:
        assert server.client.get(f"/v1/models/{model['id']}").json() == model
        assert model["root"] == served.BASE and (model["parent"] is None) == (model["id"] == served.BASE)
        assert model["max_model_len"] == 256 and model["chat"] is True and model["owned_by"] == "jittor-lora"
    for name in ("none", "a/b", "%2e%2e/one", "%00", "北京", "x" * 1000):
        assert error_of(server.client.get(f"/v1/models/{name}"), 404)["code"] == "model_not_found"


_texts = st.text(max_size=20)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_texts, inner, max_size=4), max_leaves=8)
_names = st.sampled_from(["model", "prompt", "messages", "context", "question", "questions", "models", "methods", "n",
                          "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "seed",
                          "stop", "logprobs", "top_logprobs", "echo", "stream", "stream_options", "spans", "best_of",
                          "lora_name", "lora_path", "min_tokens", "repetition_penalty", "no_repeat_ngram_size"])
_good = st.sampled_from([{"model": "one", "prompt": "The town"}, {"model": "two", "prompt": [[1, 2], [3]]},
                         {"model": "one", "messages": [{"role": "user", "content": "Hello"}]},
                         {"context": served.CONTEXT, "question": "?"}, {"lora_name": "new", "lora_path": "one"}])


@given(path=st.sampled_from(PATHS), good=_good, changed=st.dictionaries(_names, _json, max_size=3))
@settings(max_examples=100, suppress_health_check=list(HealthCheck))
def test_any_fields(server, path, good, changed):
    body = json.dumps({"max_tokens": 4, **good, **changed})
    try:
        body.encode()
    except UnicodeEncodeError:
        return
    response = server.client.post(path, content=body, headers=JSON, timeout=60)
    if response.status_code != 200:
        error_of(response, response.status_code)


@given(path=st.sampled_from(PATHS), body=st.binary(max_size=200))
@settings(max_examples=100, suppress_health_check=list(HealthCheck))
def test_any_bytes(server, path, body):
    error_of(server.client.post(path, content=body, headers=JSON), 400)


@pytest.mark.parametrize("setting", [
    '"temperature": 5e-324', '"temperature": 1e-300', '"temperature": 1e-40', '"temperature": 100',
    '"temperature": -5e-324', '"top_p": 1e-300', '"min_p": 1', '"min_p": 5e-324', '"repetition_penalty": 0.01',
    '"repetition_penalty": 100',
    '"top_k": 2147483647', '"no_repeat_ngram_size": 1', '"no_repeat_ngram_size": 2147483647',
    '"min_tokens": 2147483647',
    '"seed": -9223372036854775808', '"seed": 9223372036854775807', '"temperature": 1E-5', '"top_p": 1.0e0'])
def test_extreme_settings(server, setting):
    body = '{"model": "one", "prompt": "The town", "max_tokens": 8, "n": 2, "logprobs": 20, %s}' % setting
    response = server.client.post(PATHS[0], content=body, headers=JSON)
    assert response.status_code == 200, response.text
    for choice in response.json()["choices"]:
        assert all(-1e4 < value <= 0 for value in choice["logprobs"]["token_logprobs"])


@pytest.mark.parametrize("setting", ['"temperature": 1e999', '"top_p": 5e-324', '"top_p": 1e-400', '"seed": 1e3',
                                     '"n": 1.0', '"max_tokens": true', '"stop": "\\u0000"', '"top_p": 1.0000001'])
def test_numbers_out_of_range(server, setting):
    body = '{"model": "one", "prompt": "The town", "max_tokens": 8, %s}' % setting
    response = server.client.post(PATHS[0], content=body, headers=JSON)
    assert response.status_code == (200 if "stop" in setting else 400), response.text
