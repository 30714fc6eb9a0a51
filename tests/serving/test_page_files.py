"""The page's files over HTTP, and the samples."""

from __future__ import annotations

import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from jittor_lora.serving.views import page_files

UNSAFE = r"\.innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function"


@pytest.fixture(scope="module")
def client():
    app = FastAPI()
    app.include_router(page_files.router(None))
    with TestClient(app) as client:
        yield client


@pytest.mark.parametrize("path, kind", [("/", "text/html"), ("/page/index.html", "text/html"),
                                        ("/page/style.css", "text/css"), ("/page/main.js", "text/javascript"),
                                        ("/page/views/ask.js", "text/javascript"), ("/page/icon.svg", "image/svg+xml")])
def test_kinds(client, path, kind):
    response = client.get(path)
    assert response.status_code == 200 and response.headers["content-type"].split(";")[0] == kind
    assert response.headers["cache-control"] == "no-cache"
    head = client.head(path)
    assert head.status_code == 200 and head.content == b"" and head.headers["etag"] == response.headers["etag"]


def test_an_unchanged_file_is_not_sent_again(client):
    tag = client.get("/page/main.js").headers["etag"]
    for value in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        response = client.get("/page/main.js", headers={"If-None-Match": value})
        assert response.status_code == 304 and response.content == b"" and response.headers["etag"] == tag
    assert client.get("/page/main.js", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize("path", ["/page/", "/page/none.js", "/page/views", "/page/views/",
                                  "/page/%2e%2e/page_files.py", "/page/views/%2e%2e/main.js", "/page//etc/passwd",
                                  "/page/main.js%00", "/page/MAIN.js", "/page/main.js/", "/page/" + "a" * 4000])
def test_only_the_page_is_served(client, path):
    assert client.get(path).status_code == 404
    assert client.post("/page/main.js").status_code == 405


def test_only_known_kinds_of_files_are_taken(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("index.html", "deep/part.js", "notes.txt", "main.js.swp", ".hidden"):
        (tmp_path / name).write_text(name)
    files = page_files.page_files(tmp_path)
    assert sorted(files) == ["deep/part.js", "index.html"] and files["deep/part.js"].content == b"deep/part.js"


def test_samples(client):
    samples = client.get("/ui/samples").json()
    assert "SQuAD" in samples["source"] and samples["licence"] == "CC BY-SA 4.0"
    assert len({sample["title"] for sample in samples["contexts"]}) == len(page_files.CHOSEN) >= 5
    for sample in samples["contexts"]:
        assert len(sample["questions"]) >= 4
        for question in sample["questions"]:
            assert question["text"] and question["answers"] == list(dict.fromkeys(question["answers"]))
            assert all(answer in sample["context"] for answer in question["answers"])


def test_without_the_sample_data_there_are_no_samples(monkeypatch, tmp_path):
    page_files.samples.cache_clear()
    monkeypatch.setitem(page_files.SHIPPED, "sample-dev", tmp_path / "none.json")
    assert page_files.samples()["contexts"] == []
    page_files.samples.cache_clear()


def test_nothing_is_inline_and_nothing_comes_from_elsewhere():
    for name, file in page_files.page_files().items():
        text = file.content.decode()
        addresses = set(re.findall(r"https?://[^\s\"'`)]+", text)) - {"http://www.w3.org/2000/svg"}
        assert addresses == set(), name
        assert not re.search(UNSAFE, text), name
        if name.endswith(".html"):
            assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text), name
            named = re.findall(r'(?:src|href)="(page/[^"]+)"', text)
            assert all((page_files.PAGE.parent / path).is_file() for path in named)


def test_every_module_that_is_imported_is_there():
    files = page_files.page_files()
    for name, file in files.items():
        for path in re.findall(r'^(?:import|export) .*? from "(.+?)";$', file.content.decode(), re.MULTILINE):
            assert path.startswith("."), (name, path)
            target = (page_files.PAGE / name).parent.joinpath(path).resolve().relative_to(page_files.PAGE.resolve())
            assert target.as_posix() in files, (name, path)
