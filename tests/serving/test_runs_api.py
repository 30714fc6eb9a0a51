"""/ui/runs and /ui/runs/{id}."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jittor_lora.serving.settings import ServeSettings
from run_folders import make_run, make_scores
from serving import served


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api") / "runs"
    make_run(folder / "a" / "b c", 30)
    make_scores(folder / "a" / "b c", "adapter", {"q": "x"}, ["x"], 50.0)
    make_run(folder / "运行#1", 3, ended=None)
    make_run(folder.parent / "secret", 3)
    return folder


@pytest.fixture(scope="module")
def server(served_files, folder):
    with served.running(served_files, ServeSettings(runs=folder), adapters=()) as running:
        yield running


def test_a_listing_and_its_runs(server):
    found = server.client.get("/ui/runs").json()
    assert found["folder"] == "runs" and found["notes"] == []
    assert {run["id"]: run["state"] for run in found["data"]} == {"a/b c": "finished", "运行#1": "interrupted"}
    details = server.client.get("/ui/runs/a/b c").json()
    assert details["run"] in found["data"] and details["curves"]["training"]["step"] == list(range(1, 31))
    assert details["settings"]["base"] == "tiny" and details["summary"]["steps"] == 30
    assert details["results"]["scores"][0]["exact_match"] == 50.0
    assert server.client.get("/ui/runs/%E8%BF%90%E8%A1%8C%231").json()["run"]["id"] == "运行#1"


def test_only_what_is_new(server):
    curves = server.client.get("/ui/runs/a/b c").json()["curves"]
    more = server.client.get("/ui/runs/a/b c", params={"since": 28, "version": curves["version"]}).json()
    assert more["curves"]["training"]["step"] == [29, 30] and more["curves"]["since"] == 28
    assert more["settings"] is more["results"] is None
    again = server.client.get("/ui/runs/a/b c", params={"since": 28, "version": "0"}).json()["curves"]
    assert again["since"] == 0 and len(again["training"]["step"]) == 30


@pytest.mark.parametrize("name", ["..", "../secret", "%2e%2e/secret", "..%2Fsecret", "a", "a/b c/..", "/etc", "%00",
                                  "a/b c/metrics.jsonl", "%ff", "a//b c"])
def test_no_path_but_a_name_of_the_listing(server, name):
    response = server.client.get(f"/ui/runs/{name}")
    assert response.status_code in (404, 200) and "metrics" not in response.text
    if response.status_code == 200:
        assert response.url.path in ("/ui/runs", "/ui/runs/")


@given(name=st.text(max_size=30), since=st.one_of(st.integers(), st.text(max_size=5)), version=st.text(max_size=80))
@settings(max_examples=40, deadline=None)
def test_no_request_is_a_bug(server, name, since, version):
    from urllib.parse import quote
    response = server.client.get(f"/ui/runs/{quote(name.encode('utf-8', 'replace'), safe='')}",
                                 params={"since": str(since).encode("utf-8", "replace"),
                                         "version": version.encode("utf-8", "replace")})
    assert response.status_code in (200, 307, 400, 404)


def test_a_server_without_runs(served_files):
    with served.running(served_files, adapters=()) as running:
        assert running.client.get("/ui/runs").json()["folder"] is None
        assert running.client.get("/ui/runs/x").status_code == 404
