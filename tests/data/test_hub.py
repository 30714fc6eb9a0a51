"""Data sets of the Hub: from its cache, fetched, from a local server through the real library, or not at all."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

from conversation_files import array, lines, messages, table, turns
from jittor_lora.data import sources
from jittor_lora.data.hub import Hub, hub_files
from jittor_lora.data.sources import load_data
from jittor_lora.errors import UserError
from jittor_lora.files.hub_access import Unavailable

ROWS = [messages(turns("a", "b")), messages(turns("c", "d"))]
PARTS = {"data/train-00000-of-00002.jsonl": lines(ROWS), "data/train-00001-of-00002.jsonl": lines(ROWS[:1])}


class Fake:
    """A Hub with some files, and its cache in a folder."""

    def __init__(self, folder, files, reachable=True):
        self.folder, self.files, self.reachable, self.asked = folder, files, reachable, []
        self.hub = Hub(self.cached, self.listing, self.download)

    def cached(self, repository):
        return self.folder if self.folder.exists() else None

    def listing(self, repository):
        self.asked.append(repository)
        if not self.reachable:
            raise Unavailable("no answer within 20 seconds")
        return {name: len(content) for name, content in self.files.items()}

    def download(self, repository, file):
        self.asked.append(file)
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.files[file])
        return path


@pytest.fixture
def fake(tmp_path):
    return lambda files, **options: Fake(tmp_path / "snapshot", files, **options)


@pytest.fixture
def load(monkeypatch):
    def load(there, name, **options):
        monkeypatch.setattr(sources, "hub_files", lambda name, split: hub_files(name, split, there.hub))
        return load_data(name, **options)
    return load


def test_parts_are_read_one_after_the_other_and_fetched_once(fake, load, capsys):
    there = fake({**PARTS, "README.md": b"x", "data/test-00000-of-00001.jsonl": lines(ROWS)})
    for _ in range(2):
        data = load(there, "hub:org/name")
        assert data.path == "hub:org/name/data/train-*-of-00002.jsonl"
        assert [(one.id, one.turns) for one in data.conversations] == [
            ("1/1", turns("a", "b")), ("1/2", turns("c", "d")), ("2/1", turns("a", "b"))]
    assert there.asked == ["org/name", *PARTS]
    assert capsys.readouterr().err == f"Fetching {data.path} ({sum(map(len, PARTS.values())):,} bytes), once …\n"
    assert len(load(there, "hub:org/name:test")) == 2
    assert len(load(there, "hub:org/name/data/train-00001-of-00002.jsonl")) == 1


def test_offenders_name_the_part(fake, load):
    there = fake({**PARTS, "data/train-00001-of-00002.jsonl": lines([*ROWS, {"messages": []}])})
    with pytest.raises(UserError, match="file 2, line 3, messages: expected a list of turns"):
        load(there, "hub:org/name")


def test_tables_and_columns(fake, load):
    there = fake({"train.csv": table([{"q": "a", "r": "b"}]), "validation.csv": table([{"q": "c", "r": "d"}])})
    assert load(there, "hub:org/name", columns={"prompt": "q", "completion": "r"}).prompts[0].text == "a"
    assert load(there, "hub:org/name", split="dev", columns={"prompt": "q", "completion": "r"}).prompts[0].text == "c"


def test_squad_from_the_hub(fake, load):
    squad = {"data": [{"paragraphs": [{"context": "a", "qas": [
        {"id": "1", "question": "q", "answers": [{"text": "a", "answer_start": 0}]}]}]}]}
    there = fake({"train.json": array([]).replace(b"[]", json.dumps(squad).encode())})
    assert load(there, "hub:org/name").references() == {"1": ["a"]}


def test_a_cache_without_all_parts_is_not_enough(fake, load):
    there = fake(PARTS)
    there.download("org/name", "data/train-00000-of-00002.jsonl")
    assert len(load(there, "hub:org/name")) == 3
    assert there.asked[1:] == ["org/name", *PARTS]


def test_without_a_network(fake, load):
    there = fake(PARTS, reachable=False)
    with pytest.raises(UserError) as caught:
        load(there, "hub:org/name")
    assert str(caught.value).startswith("hub:org/name: not available from the Hugging Face Hub: no answer within 20 s")
    assert "HF_ENDPOINT" in str(caught.value) and "--data FILE" in str(caught.value)


def test_too_much_is_not_fetched(fake, load):
    there = fake({"train.jsonl": b""})
    there.listing = None
    there.hub = Hub(there.cached, lambda repository: {"train.jsonl": 5 << 30}, there.download)
    with pytest.raises(UserError, match="hub:org/name/train.jsonl: expected at most 1,073,741,824 bytes; found 5,368,"):
        load(there, "hub:org/name")


@pytest.mark.parametrize("name", ["hub:", "hub:name", "hub:a/b:c:d", "hub:../a", "hub:a/b:", "hub:a b/c"])
def test_names(name):
    with pytest.raises(UserError, match="expected hub:organisation/name, hub:organisation/name:split or"):
        load_data(name)


def test_a_file_of_that_name_takes_precedence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hub:org").mkdir()
    (tmp_path / "hub:org" / "name").write_bytes(lines(ROWS))
    assert len(load_data("hub:org/name")) == 2


class Server(http.server.BaseHTTPRequestHandler):
    """As much of the Hub as huggingface_hub asks for; `refs/../` and other repositories do not exist."""

    protocol_version = "HTTP/1.1"
    commit = "0123456789abcdef0123456789abcdef01234567"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path in ("/api/datasets/org/name", "/api/datasets/org/name/revision/main"):
            names = [{"rfilename": name, "size": len(content)} for name, content in PARTS.items()]
            self.answer(json.dumps({"id": "org/name", "sha": self.commit, "private": False, "tags": [], "downloads": 0,
                                    "siblings": names}).encode())
        elif path.startswith("/datasets/org/name/resolve/"):
            self.answer(PARTS["data/" + path.rsplit("/", 1)[1]])
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def answer(self, content: bytes):
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def endpoint():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def told(name: str, **environment: str) -> str:
    program = ("import sys\nfrom jittor_lora.data.sources import load_data\nfrom jittor_lora.errors import UserError\n"
               "try:\n    print([one.id for one in load_data(sys.argv[1]).conversations])\n"
               "except UserError as error:\n    print(error)\n")
    done = subprocess.run([sys.executable, "-c", program, name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, env={**os.environ, "no_proxy": "127.0.0.1", **environment}, timeout=120)
    return done.stdout


def test_the_library_fetches_from_a_mirror_and_its_cache_serves_offline(endpoint, tmp_path):
    home = {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    assert "['1/1', '1/2', '2/1']" in told("hub:org/name", HF_ENDPOINT=endpoint, **home)
    assert told("hub:org/name", HF_HUB_OFFLINE="1", **home) == "['1/1', '1/2', '2/1']\n"
    said = told("hub:org/other", HF_ENDPOINT=endpoint, **home)
    assert "hub:org/other: not available from the Hugging Face Hub: there is no such repository, or it is" in said
    said = told("hub:org/other", HF_HUB_OFFLINE="1", **home)
    assert "HF_HUB_OFFLINE is set and it is not in the local cache" in said
