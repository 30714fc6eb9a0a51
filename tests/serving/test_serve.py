"""`serve`: adapters and their names, who may ask, messages before anything is loaded, and the server itself."""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

import small_run
from jittor_lora.cli import serve
from jittor_lora.cli.main import main
from jittor_lora.cli.served_adapters import named_adapters
from jittor_lora.errors import UserError
from jittor_lora.lora.config import LoraConfig
from jittor_lora.session import load

KEY = "sk-0123456789"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(serve.KEY_VARIABLE, raising=False)


@pytest.fixture
def adapters(tmp_path):
    """Folders that look like adapters: a run, three runs in a folder, an adapter."""
    for folder in ("run/adapter", "runs/a/adapter", "runs/b/adapter", "runs/lr=1e-3/adapter", "runs/notes", "plain"):
        (tmp_path / folder).mkdir(parents=True)
        if "notes" not in folder:
            (tmp_path / folder / "adapter_config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(("texts", "found"), [
    (["run"], {"run": "run/adapter"}),
    (["run/adapter"], {"run": "run/adapter"}),
    (["run/"], {"run": "run/adapter"}),
    (["plain"], {"plain": "plain"}),
    (["plain/../run"], {"run": "plain/../run/adapter"}),
    (["style=run", "plain"], {"style": "run/adapter", "plain": "plain"}),
    (["one=run", "two=run"], {"one": "run/adapter", "two": "run/adapter"}),
    (["runs"], {"a": "runs/a/adapter", "b": "runs/b/adapter", "lr=1e-3": "runs/lr=1e-3/adapter"}),
    (["runs/lr=1e-3"], {"lr=1e-3": "runs/lr=1e-3/adapter"}),
    (["x=runs/lr=1e-3"], {"x": "runs/lr=1e-3/adapter"}),
    ([], {}),
])
def test_adapters_and_their_names(texts, found, adapters):
    assert {name: str(folder) for name, folder in named_adapters(texts)} == found


def test_everything_wrong_with_adapters_is_said(adapters):
    with pytest.raises(UserError) as error:
        named_adapters(["no/such", "runs/notes", "all=runs", "=run", "run", "style=run", "style=plain"])
    lines = str(error.value).splitlines()
    assert len(lines) == 5
    assert "no/such: expected" in lines[0] and "found no such folder" in lines[0]
    assert "runs/notes: expected" in lines[1] and "found none in it" in lines[1]
    assert "expected one adapter to call all; found 3" in lines[2] and "a name before the =" in lines[3]
    assert "2 adapters are called style: run/adapter, plain" in lines[4]


@pytest.fixture
def started(monkeypatch):
    """What the server is started with."""
    started = []
    monkeypatch.setattr("jittor_lora.serving.start.serve",
                        lambda base, adapters, settings, *more: started.append((base, adapters, settings)))
    return started


def test_flags_become_settings(started, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "key").write_text(KEY + "\n")
    assert main(["serve", "--base", "b", "--port", "0", "--runs", "runs", "--adapters-from", "runs", "--max-body", "2",
                 "--cache", "0", "--request-seconds", "none", "--api-key-file", "key", "--host", "0.0.0.0",
                 "--allowed-host", "Model.example", "--cors", "https://a.example", "--cors", "http://b:3000"]) == 0
    base, adapters, settings = started[0]
    assert (base, adapters, settings.api_key, settings.host) == ("b", [], KEY, "0.0.0.0")
    assert settings.allowed_hosts == ("model.example",)
    assert settings.cors_origins == ("https://a.example", "http://b:3000")
    assert (settings.max_body_bytes, settings.cache_bytes, settings.request_seconds) == (2 << 20, 0, None)
    assert KEY not in repr(settings)


@pytest.mark.parametrize(("flags", "variable", "key"), [
    ([], None, None), ([], KEY, KEY), (["--api-key", "another-key"], KEY, "another-key"),
    (["--without-key", "--host", "0.0.0.0"], KEY, None), (["--host", "0.0.0.0"], KEY, KEY),
    (["--host", "[::1]"], None, None),
])
def test_the_key(flags, variable, key, started, monkeypatch):
    if variable is not None:
        monkeypatch.setenv(serve.KEY_VARIABLE, variable)
    assert main(["serve", "--base", "b", *flags]) == 0
    assert started[0][2].api_key == key


@pytest.mark.parametrize(("flags", "words"), [
    (["--host", "0.0.0.0"], ["--host 0.0.0.0: other machines", "--api-key-file", "--without-key"]),
    (["--host", "::"], ["other machines"]),
    (["--api-key", "short"], ["--api-key: expected a key of at least 8"]),
    (["--api-key", "with a space"], ["--api-key: expected a key"]),
    (["--api-key", "schlüssel-schlüssel"], ["--api-key: expected a key"]),
    (["--api-key-file", "missing"], ["missing: cannot be read"]),
    (["--api-key", KEY, "--api-key-file", "f"], ["cannot be given together"]),
    (["--api-key", KEY, "--without-key"], ["cannot be given together"]),
    (["--port", "70000", "--max-texts", "0", "--request-seconds", "0"], ["port", "max-texts", "request-seconds"]),
    (["--cors", "*", "--cors", "a.example", "--cors", "https://a.example/x", "--allowed-host", "a:80",
      "--runs", "missing", "--adapters-from", "missing"],
     ["--cors *:", "--cors a.example:", "--cors https://a.example/x:", "--allowed-host a:80:",
      "--runs missing: no such", "--adapters-from missing: no such"]),
    (["--adapter", "none"], ["--adapter none: expected an adapter folder"]),
])
def test_everything_wrong_is_said_before_anything_is_loaded(flags, words, started, capsys):
    assert main(["serve", "--base", "b", *flags]) == 2
    said = capsys.readouterr().err
    assert started == [] and [word for word in words if word not in said] == [], said


def test_unreadable_adapters_are_listed(started, adapters, capsys):
    (adapters / "runs/a/adapter/adapter_config.json").write_text("{")
    assert main(["serve", "--base", "b", "--adapter", "runs"]) == 2
    said = capsys.readouterr().err
    assert started == [] and all(f"runs/{name}/adapter/adapter_config.json" in said for name in ("a", "b", "lr=1e-3"))


@pytest.mark.parametrize("package", serve.PACKAGES)
def test_a_missing_package_is_named_with_the_command_that_installs_it(package, tmp_path):
    script = f"import sys; sys.modules[{package!r}] = None; from jittor_lora.cli.main import main; " \
             "code = main(['serve', '--base', 'none']); " \
             "sys.exit('a model was loaded' if 'jittor' in sys.modules else code)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2 and package in done.stderr, done.stderr
    assert 'pip install "jittor-lora[serve]"' in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("flags", "message"), [
    (["--host", "no.such.host.invalid"], "no such host"), (["--host", "203.0.113.7"], "not an address of this machine"),
])
def test_a_host_that_is_not_here(flags, message, capsys):
    assert main(["serve", "--base", "no/such/base", "--port", "0", "--without-key", *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_port_in_use(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", "--base", "no/such/base", "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert f"--port {port}: in use by another program" in said and "--port 0" in said


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    small_run.make_base(folder / "base")
    session = load(str(folder / "base"))
    session.add_adapter(LoraConfig(r=2, target_modules=("c_attn",)))
    session.save_adapter(folder / "runs" / "quick" / "adapter")
    return folder


class Served:
    def __init__(self, *flags, port=0):
        self._process = small_run.start("serve", "--port", port, *flags)
        self.said = []
        while not self.said or " -d " not in self.said[-1]:
            self.said.append(self._process.stdout.readline())
            if not self.said[-1]:
                pytest.fail(self._process.communicate()[1])
        self.url = re.search(r"http://\S+", self.said[0])[0]
        self.port = int(self.url.rpartition(":")[2])

    def signal(self, number):
        self._process.send_signal(number)

    def ended(self):
        """(exit code, the log)"""
        _, err = self._process.communicate(timeout=60)
        return self._process.returncode, err


@pytest.fixture
def serving():
    running = []

    def serving(*flags, **named):
        running.append(Served(*flags, **named))
        return running[-1]

    yield serving
    for one in running:
        one._process.kill()
        one._process.communicate()


def test_the_printed_command_is_answered(serving, files):
    server = serving("--adapter", files / "runs")
    command = shlex.split("".join(server.said[2:]).replace("\\\n", ""))
    assert command[0] == "curl" and command[1] == f"{server.url}/v1/answers"
    headers = dict(command[i + 1].split(": ") for i, word in enumerate(command) if word == "-H")
    found = httpx.post(command[1], headers=headers, content=command[-1], timeout=60)
    assert found.status_code == 200 and found.json()["answers"][0]["model"] == "quick"
    names = [model["id"] for model in httpx.get(f"{server.url}/v1/models").json()["data"]]
    assert names == [str(files / "base"), "quick"]
    assert httpx.get(f"{server.url}/v1/models", headers={"origin": "https://evil.example"}).status_code == 403
    time.sleep(0.1)
    server.signal(signal.SIGTERM)
    code, log = server.ended()
    assert code == 0 and re.search(r" POST /v1/answers 200 \d+ ms \d+ \+ \d+ tokens", log)
    assert "Jittor was released" not in log and "Traceback" not in log


def test_texts_are_logged_when_asked_for_and_a_key_is_needed(serving, files, monkeypatch):
    monkeypatch.setenv(serve.KEY_VARIABLE, KEY)
    server = serving("--base", files / "base", "--log-texts")
    assert httpx.get(f"{server.url}/v1/models").status_code == 401
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    found = httpx.post(f"{server.url}/v1/completions", headers={"authorization": f"Bearer {KEY}"}, timeout=60,
                       json={"model": str(files / "base"), "prompt": "Once\x1b[31m upon 水", "max_tokens": 3})
    assert found.status_code == 200
    server.signal(signal.SIGINT)
    code, log = server.ended()
    assert code == 0 and KEY not in log and "\x1b" not in log
    logged = json.loads(re.search("request: (.*)", log)[1])
    assert logged["prompt"] == "Once\x1b[31m upon 水"


def test_killed_and_started_again_on_the_same_port(serving, files):
    server = serving("--base", files / "base")
    with httpx.Client(base_url=server.url) as client:  # a connection is open when it dies
        assert client.get("/health").status_code == 200
        server.signal(signal.SIGKILL)
        assert server.ended()[0] == -signal.SIGKILL
        again = serving("--base", files / "base", port=server.port)
        assert httpx.get(f"{again.url}/health").json()["status"] == "ok"
    assert again.port == server.port


def test_a_stream_is_complete_when_the_server_is_stopped(serving, files):
    server = serving("--base", files / "base")
    asked = {"model": str(files / "base"), "prompt": "The river", "max_tokens": 200, "n": 16, "stream": True,
             "temperature": 1.0}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=asked, timeout=60) as response:
        lines = (line for line in response.iter_lines() if line)
        chunks = [next(lines)]
        server.signal(signal.SIGTERM)
        chunks += lines
    assert chunks.pop() == "data: [DONE]"
    choices = [json.loads(chunk[len("data: "):])["choices"][0] for chunk in chunks]
    assert {choice["index"] for choice in choices if choice["finish_reason"]} == set(range(16))
    assert server.ended()[0] == 0
