"""What the pages tell readers to send, and the example, against a server."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jittor_lora.serving.settings import ServeSettings
from needs import needs_openai
from serving import served

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / "serving.md", ROOT / "README.md"]
EXAMPLE = ROOT / "examples" / "ask_server.py"
CONFIG = {**served.small_run.GPT2, "n_positions": 512}


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A server as the pages have it, started in the folder of a reader who wrote down their files."""
    folder, before = served.make_files(tmp_path_factory.mktemp("reader"), config=CONFIG), os.getcwd()
    os.chdir(folder)
    Path("runs").mkdir()
    (folder / "adapters" / "three").rename("runs/other")
    for block in blocks("json"):
        Path("questions.json").write_text(localised(block), encoding="utf-8")
    try:
        with served.running(folder, ServeSettings(adapter_folders=(Path("runs"),)), adapters=()) as server:
            for name, source in (("quickstart", "one"), ("calendar", "two")):
                server.computed(lambda name=name, source=source: server.service.models.load(
                    name, folder / "adapters" / source))
            yield server
    finally:
        os.chdir(before)


def blocks(language: str) -> list[str]:
    """Those of all pages."""
    return [block for page in PAGES
            for block in re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)]


def localised(text: str, server: served.Running | None = None) -> str:
    """With this server's address and the name of its base."""
    text = text.replace("smollm2-135m", served.BASE)
    return text if server is None else text.replace("http://127.0.0.1:8000", server.url)


def curls() -> list[str]:
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("curl ")]


def test_curl(reader):
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    assert len(curls()) > 4
    for line in curls():
        words = shlex.split(localised(line, reader))
        ended = subprocess.run([*words, "-sSf"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)
        assert ended.returncode == 0, f"{line}\n{ended.stderr}"
        assert "adapter" in line or json.loads(ended.stdout)["usage"]["total_tokens"] > 0


@needs_openai
def test_openai(reader, capsys):
    found = [block for block in blocks("python") if "import openai" in block]
    assert len(found) > 1
    for block in found:
        exec(compile(localised(block, reader), "docs/serving.md", "exec"), {})
        assert capsys.readouterr().out


@pytest.mark.parametrize("models", [[], [served.BASE, "quickstart"]])
def test_questions_about_a_file(reader, tmp_path, models):
    (tmp_path / "notes.txt").write_text(f"{served.CONTEXT}\n", encoding="utf-8")
    said = example(reader, "--context", str(tmp_path / "notes.txt"), *served.QUESTIONS[:2],
                   *(["--models", *models] if models else []))
    for model in models or [served.BASE]:
        for question in served.QUESTIONS[:2]:
            lines = [line for line in said.splitlines() if line.startswith(f"{question} {model}:")]
            assert len(lines) == 2
            assert any(re.search(r"\w+ at \d+ \(\d+\.\d%\); ", line) for line in lines)
    assert "completion_tokens" in said


@needs_openai
def test_a_chat(reader):
    said = example(reader, "Good morning.", "Good night.", "--models", "calendar", "--max-tokens", "5", "--system",
                   "Be brief.")
    assert said.count("calendar: ") == 2
    assert example(reader, "Hello", "--max-tokens", "5").startswith(f"{served.BASE}: ")


def test_an_error(reader):
    with pytest.raises(AssertionError, match="model: expected one of"):
        example(reader, "--context", str(EXAMPLE), "Who?", "--models", "nobody")


def example(server: served.Running, *words: str) -> str:
    ended = subprocess.run([sys.executable, str(EXAMPLE), *words, "--url", server.url], text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
