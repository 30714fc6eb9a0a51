"""Adapters at run time, by vLLM's names, from the allowed folders alone."""

from __future__ import annotations

import shutil

import pytest

import small_run
from jittor_lora.errors import UserError
from jittor_lora.inference.generator import Decoding
from jittor_lora.lora.config import LoraConfig
from jittor_lora.serving.models import Models
from jittor_lora.serving.settings import ServeSettings
from jittor_lora.session import load
from serving import served

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two allowed folders: of adapters, and of runs."""
    files = served.make_files(tmp_path_factory.mktemp("files"))
    shutil.copytree(files / "adapters/two", files / "runs/monday/adapter")
    shutil.copytree(files / "adapters/three", files / "outside/three")
    (files / "adapters/link").symlink_to(files / "outside/three")
    return files


@pytest.fixture
def server(files):
    settings = ServeSettings(adapter_folders=(files / "adapters", files / "runs"))
    with served.running(files, settings, adapters=("one",)) as running:
        yield running


def text(server, model):
    answer = server.answer("/v1/completions", model=model, prompt="The town", temperature=0, max_tokens=12)
    return answer["choices"][0]["text"]


def names(server):
    return [model["id"] for model in server.client.get("/v1/models").json()["data"]]


def test_load_ask_unload(server, files):
    response = server.post(LOAD, lora_name="v1.5/two", lora_path="two")
    assert (response.status_code, response.text) == (200, "Success: LoRA adapter 'v1.5/two' added successfully.")
    assert names(server) == [served.BASE, "one", "v1.5/two"]
    assert server.client.get("/v1/models/v1.5/two").json()["parent"] == served.BASE
    alone = load(str(files / "base"), files / "adapters/two")
    from jittor_lora.inference.generator import Generator
    expected = server.computed(
        lambda: Generator(alone.model, alone.tokenizer).continue_text("The town", Decoding(12)))
    assert text(server, "v1.5/two") == expected
    response = server.post(UNLOAD, lora_name="v1.5/two")
    assert (response.status_code, response.text) == (200, "Success: LoRA adapter 'v1.5/two' removed successfully.")
    assert names(server) == [served.BASE, "one"]
    assert server.error("/v1/completions", 404, model="v1.5/two", prompt="x")["code"] == "model_not_found"
    assert list(server.service.session.adapters) == ["one"]


def test_a_name_used_again_is_another_adapter(server):
    """Nothing that was kept of the first is used for the second."""
    found = []
    for path in ("two", "three", "two"):
        assert server.post(LOAD, lora_name="new", lora_path=path).status_code == 200
        found.append(text(server, "new"))
        assert server.post(UNLOAD, lora_name="new").status_code == 200
    assert found[0] == found[2] != found[1]


def test_what_is_called_a_path(server, files, monkeypatch):
    monkeypatch.chdir(files)
    for number, path in enumerate(("two", "two/", str(files / "adapters/two"), "monday", "monday/adapter",
                                   str(files / "runs/monday"))):
        response = server.post(LOAD, lora_name=f"new-{number}", lora_path=path)
        assert response.status_code == 200, response.text
    assert len({text(server, f"new-{number}") for number in range(6)}) == 1


@pytest.mark.parametrize("path", ["/etc", "..", "../outside/three", "two/../three", "./two", "link", "*", "t?o", "\x00",
                                  "~", "two\n", "TWO", "none", "x" * 4000])
def test_other_paths(server, path):
    error = server.error(LOAD, 404, lora_name="new", lora_path=path)
    assert error["param"] == "lora_path" and error["message"].endswith("there is one, three, two, monday.")
    assert names(server) == [served.BASE, "one"]


def test_a_path_outside(server, files):
    server.error(LOAD, 404, lora_name="new", lora_path=str(files / "outside/three"))


@pytest.mark.parametrize("name", ["one", served.BASE, " ", "a\n", "\u202e", "x" * 201])
def test_names(server, name):
    assert server.post(LOAD, lora_name=name, lora_path="two").status_code == 400
    assert names(server) == [served.BASE, "one"]


def test_refused(server, files, tmp_path):
    assert "is not loaded" in server.error(UNLOAD, 404, lora_name="none")["message"]
    assert "cannot be unloaded" in server.error(UNLOAD, 400, lora_name=served.BASE)["message"]
    assert server.error(LOAD, 400, lora_name="new")["param"] == "lora_path"
    assert server.error(LOAD, 400, lora_name="new", lora_path="two", load_inplace=True)["param"] == "load_inplace"


def test_an_adapter_of_another_base(server, files):
    other = served.make_base(files / "other", config={**small_run.GPT2, "n_embd": 16})
    session = load(str(other))
    session.add_adapter(LoraConfig(r=2, target_modules=("c_attn",)))
    session.save_adapter(files / "runs/other")
    try:
        error = server.error(LOAD, 400, lora_name="new", lora_path="other")
        assert "runs/other" in error["message"] and "expected" in error["message"]
        assert names(server) == [served.BASE, "one"] and list(server.service.session.adapters) == ["one"]
    finally:
        shutil.rmtree(files / "runs/other")


def test_requests_go_on_while_adapters_come_and_go(server):
    """Whoever asks for an adapter while it is unloaded is answered, or told that it is not there."""
    expected = text(server, "one")

    def ask(number):
        return [server.post("/v1/completions", model=("one", "new")[number % 2], prompt="The town", temperature=0,
                            max_tokens=12) for _ in range(12)]

    def change():
        for _ in range(6):
            assert server.post(LOAD, lora_name="new", lora_path="two").status_code == 200
            assert server.post(UNLOAD, lora_name="new").status_code == 200

    *found, _ = server.together([lambda number=number: ask(number) for number in range(6)] + [change])
    for number, responses in enumerate(found):
        for response in responses:
            if number % 2 == 0:
                assert response.json()["choices"][0]["text"] == expected
            else:
                assert response.status_code in (200, 404)
    assert len({response.json()["choices"][0]["text"] for responses in found[1::2] for response in responses
                if response.status_code == 200}) <= 1


def test_added_tokens_cannot_come_later(files, tmp_path):
    folder = _with_added_token(files, tmp_path / "more")
    session = load(str(files / "base"))
    with pytest.raises(UserError, match="adds tokens to the base's vocabulary"):
        Models(session).load("more", folder)
    session = load(str(files / "base"), folder)
    models = Models(session, "base")
    models.adopt("more", "default", folder)
    assert models.load("one", files / "adapters/one").adapter == "one"
    assert list(models) == ["base", "more", "one"]


def _with_added_token(files, folder):
    """An adapter with a row more in its embedding, and the tokenizer for it beside it."""
    import json

    from safetensors.numpy import load_file, save_file

    import model_files
    shutil.copytree(files / "adapters/one", folder)
    tokenizer = model_files.make_bpe()
    tokenizer.add_special_tokens(["<more>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    tensors = load_file(folder / "adapter_model.safetensors")
    rows = load_file(files / "base/model.safetensors")["transformer.wte.weight"]
    for name in ("transformer.wte.weight", "lm_head.weight"):
        tensors[f"base_model.model.{name}"] = rows[[*range(300), 0]]
    save_file(tensors, folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "modules_to_save": ["wte", "lm_head"]}))
    return folder
