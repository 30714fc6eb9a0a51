from __future__ import annotations

import hashlib
import json
import sys
import time
from types import SimpleNamespace

import pytest

from jittor_lora.formats import hub

GPT2_CONFIG = '{"model_type": "gpt2", "vocab_size": 50257}'
WHOLE = {"config.json": "{\"model_type\": \"llama\"}", "model.safetensors": "", "tokenizer.json": "{}"}
INDEX = json.dumps({"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}})


@pytest.fixture
def library(monkeypatch, tmp_path):
    """Stands in for huggingface_hub: every download returns `tmp_path`, every request `answer()`."""
    fake = SimpleNamespace(asked=[], answer=lambda: None)

    def snapshot_download(repository, **options):
        fake.asked.append((repository, options))
        fake.answer()
        return str(tmp_path)

    class HfApi:
        def model_info(self, repository, timeout):
            fake.answer()

    fake.snapshot_download, fake.HfApi = snapshot_download, HfApi
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return fake


def fill(folder, files):
    for name, text in files.items():
        (folder / name).write_text(text)


def fails(error):
    def answer():
        raise error

    return answer


def test_a_whole_model_in_the_cache_is_found_without_the_network(library, tmp_path):
    fill(tmp_path, WHOLE)
    assert hub.cached("a/b") == tmp_path
    repository, options = library.asked[0]
    assert repository == "a/b" and options["local_files_only"] and set(options["allow_patterns"]) == set(hub.FILES)


@pytest.mark.parametrize(
    ("files", "whole"),
    [
        ({**WHOLE, "tokenizer.json": None, "vocab.json": "", "merges.txt": ""}, True),
        ({**WHOLE, "tokenizer.json": None, "vocab.json": ""}, False),
        ({**WHOLE, "tokenizer.json": None, "vocab.txt": ""}, True),
        ({**WHOLE, "tokenizer.json": None, "config.json": GPT2_CONFIG}, True),
        ({**WHOLE, "config.json": None}, False),
        ({**WHOLE, "config.json": "{"}, False),
        ({**WHOLE, "model.safetensors": None}, False),
        ({**WHOLE, "model.safetensors": None, "pytorch_model.bin": ""}, True),
        ({**WHOLE, "model.safetensors": None, "pytorch_model.bin.index.json": INDEX}, False),
        ({**WHOLE, "model.safetensors": None, "model.safetensors.index.json": "[]"}, False),
        ({**WHOLE, "model.safetensors": None, "model.safetensors.index.json": INDEX,
          "model-1-of-2.safetensors": ""}, False),
        ({**WHOLE, "model.safetensors": None, "model.safetensors.index.json": INDEX,
          "model-1-of-2.safetensors": "", "model-2-of-2.safetensors": ""}, True),
    ],
)
def test_an_interrupted_download_is_not_taken_for_a_model(library, tmp_path, files, whole):
    fill(tmp_path, {name: text for name, text in files.items() if text is not None})
    assert (hub.cached("a/b") == tmp_path) is whole
    if not whole:
        with pytest.raises(hub.Unavailable, match="it has no "):
            hub.download("a/b")


def test_a_model_that_is_not_in_the_cache(library):
    library.answer = fails(FileNotFoundError("no snapshot"))
    assert hub.cached("a/b") is None


def test_reasons(library):
    named = {name: type(name, (Exception,), {}) for name in ("GatedRepoError", "RepositoryNotFoundError")}
    for error, reason in [
        (named["GatedRepoError"]("401"), "its owner must grant access"),
        (named["RepositoryNotFoundError"]("404"), "there is no such repository"),
        (ConnectionError("refused\nmore lines"), "ConnectionError: refused"),
        (ConnectionError(), "ConnectionError"),
    ]:
        library.answer = fails(error)
        for attempt in (lambda: hub.reach("a/b", 5.0), lambda: hub.download("a/b")):
            with pytest.raises(hub.Unavailable) as caught:
                attempt()
            assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_a_hub_that_answers(library, tmp_path):
    fill(tmp_path, WHOLE)
    hub.reach("a/b", 5.0)
    assert hub.download("a/b") == tmp_path


def test_pytorch_weights_are_fetched_only_without_others(library, tmp_path):
    fill(tmp_path, WHOLE)
    hub.download("a/b")
    assert [set(options["allow_patterns"]) for _, options in library.asked] == [set(hub.FILES)]
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    hub.download("a/b")
    assert len(library.asked) == 2
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(hub.Unavailable, match="it has no weights"):
        hub.download("a/b")
    assert "pytorch_model.bin" in library.asked[-1][1]["allow_patterns"] and len(library.asked) == 4


def test_a_hub_that_never_answers_is_not_waited_for(library):
    library.answer = lambda: time.sleep(3)
    start = time.monotonic()
    with pytest.raises(hub.Unavailable, match=r"no answer within 0\.2 seconds"):
        hub.reach("a/b", 0.2)
    assert time.monotonic() - start < 2


def test_models_of_modelscope(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(hub.Unavailable, match="pip install modelscope"):
        hub.download_from_modelscope("a/b")

    fake = SimpleNamespace(snapshot_download=lambda model, allow_patterns: str(tmp_path))
    monkeypatch.setitem(sys.modules, "modelscope", fake)
    with pytest.raises(hub.Unavailable, match=r"it has no config\.json"):
        hub.download_from_modelscope("a/b")
    fill(tmp_path, WHOLE)
    assert hub.download_from_modelscope("a/b") == tmp_path


def test_a_damaged_download_is_removed(library, tmp_path, monkeypatch):
    """The Hub's cache: files under their hashes, and a folder of links to them per commit."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "c0ffee"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    fill(snapshot, {name: text for name, text in WHOLE.items() if name != "model.safetensors"})
    monkeypatch.setattr(library, "snapshot_download", lambda repository, **options: str(snapshot))
    blob = blobs / hashlib.sha256(b"weights").hexdigest()
    blob.write_bytes(b"weights")
    (snapshot / "model.safetensors").symlink_to(blob)
    assert hub.download("a/b") == snapshot
    blob.write_bytes(b"weightz")
    with pytest.raises(hub.Unavailable, match="model.safetensors: the SHA-256 sum differs"):
        hub.download("a/b")
    assert not blob.exists() and not (snapshot / "model.safetensors").is_symlink()
