"""/ui/adapters: what is loaded, with norms by the definition, and what can be."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from jittor_lora.formats.adapter_folder import read_adapter_folder
from jittor_lora.lora.combine import Factors
from jittor_lora.lora.config import LoraConfig
from jittor_lora.serving.settings import ServeSettings
from jittor_lora.serving.views.adapter_norms import copied, norms
from jittor_lora.session import load
from serving import served


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return served.make_files(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def server(files):
    folder = files / "adapters"
    with served.running(files, ServeSettings(adapter_folders=(folder,)), adapters=("one", "two")) as running:
        yield running


def listing(server):
    response = server.client.get("/ui/adapters")
    assert response.status_code == 200, response.text
    return response.json()


def test_norms_are_those_of_the_products(server, files):
    found = listing(server)["loaded"][0]
    adapter = read_adapter_folder(files / "adapters" / "one")
    assert (found["name"], found["rank"], found["alpha"], found["variant"]) == ("one", 4, 16.0, "LoRA")
    assert found["parameters"] == adapter.parameters and found["bytes"] == 4 * adapter.parameters
    assert sorted(found["targets"]) == ["c_attn", "c_fc"] and found["settings"]["r"] == 4 and found["whole"] == []
    assert {row["module"] for row in found["modules"]} == set(adapter.factors)
    total = 0
    for row in found["modules"]:
        factors = adapter.factors[row["module"]]
        product = factors.scaling * factors.b.astype(np.float64) @ factors.a
        total += np.sum(product ** 2)
        assert row["update"] == pytest.approx(np.linalg.norm(product), rel=1e-6)
        assert row["a"] == pytest.approx(np.linalg.norm(factors.a)) and row["b"] == pytest.approx(
            np.linalg.norm(factors.b))
        assert (row["layer"], row["kind"]) == (int(row["module"].split(".")[2]), row["module"].split(".", 3)[3])
    assert found["update"] == pytest.approx(np.sqrt(total), rel=1e-6)


def test_differences_are_those_of_the_products(server, files):
    found = server.client.get("/ui/adapters/difference", params={"first": "one", "second": "two"}).json()
    one, two = (read_adapter_folder(files / "adapters" / name).factors for name in ("one", "two"))
    assert len(found["modules"]) == len(one)
    for row in found["modules"]:
        first, second = (Factors(*pair).delta().astype(np.float64) for pair in (one[row["module"]], two[row["module"]]))
        assert row["relative"] == pytest.approx(np.linalg.norm(second - first) / np.linalg.norm(first), rel=1e-4)
        cosine = np.sum(first * second) / np.linalg.norm(first) / np.linalg.norm(second)
        assert row["cosine"] == pytest.approx(cosine, abs=1e-5)
    same = server.client.get("/ui/adapters/difference", params={"first": "one", "second": "one"}).json()
    assert all(row["relative"] < 1e-6 and row["cosine"] == pytest.approx(1) for row in same["modules"])


@pytest.mark.parametrize("second", ["none", served.BASE, "x" * 3000, ""])
def test_a_difference_with_what_is_not_loaded(server, second):
    response = server.client.get("/ui/adapters/difference", params={"first": "one", "second": second})
    assert response.status_code in (400, 404) and "error" in response.json()


def test_what_is_listed_can_be_loaded_and_unloaded(server):
    three = next(one for one in listing(server)["available"] if one["folder"].endswith("three"))
    assert three["loaded"] == [] and three["rank"] == 4 and three["of_this_base"] is True and three["problem"] is None
    assert server.post("/v1/load_lora_adapter", lora_name="3", lora_path=three["path"]).status_code == 200
    after = listing(server)
    assert [one["name"] for one in after["loaded"]] == ["one", "two", "3"]
    assert [one["loaded"] for one in after["available"]] == [["one"], ["3"], ["two"]]  # one, three, two
    assert server.post("/v1/unload_lora_adapter", lora_name="3").status_code == 200
    assert [one["name"] for one in listing(server)["loaded"]] == ["one", "two"]


def test_norms_are_of_what_is_loaded_not_of_its_files(server, files):
    before = listing(server)["loaded"]
    weights = files / "adapters" / "one" / "adapter_model.safetensors"
    kept = weights.read_bytes()
    try:
        shutil.copy(files / "adapters" / "two" / "adapter_model.safetensors", weights)
        assert listing(server)["loaded"] == before
    finally:
        weights.write_bytes(kept)


def test_what_cannot_be_loaded_says_why(server, files):
    folder = files / "adapters" / "broken"
    folder.mkdir()
    try:
        for content in ('{"peft_type": "LORA", "r": "\\ud800"}', "{", "[]", json.dumps({"r": 4, "lora_alpha": 1e400})):
            (folder / "adapter_config.json").write_text(content)
            broken = next(one for one in listing(server)["available"] if one["folder"].endswith("broken"))
            assert broken["problem"] and str(files) not in broken["problem"] and broken["rank"] is None
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("config", [
    LoraConfig(r=4, target_modules=("c_attn",), use_dora=True), LoraConfig(r=4, target_modules=("wte", "c_fc")),
    LoraConfig(r=4, target_modules=("c_attn",), init="pissa"),
    LoraConfig(r=2, target_modules=("c_attn",), qv_only=True),
    LoraConfig(r=4, target_modules=("c_fc",), modules_to_save=("ln_f",), use_rslora=True)])
def test_norms_of_variants_are_those_of_the_change_of_weight(files, config):
    session = load(str(files / "base"))
    adapter = session.add_adapter(config, seed=3)
    arrays = {name: np.random.default_rng(5).normal(size=tuple(value.shape)).astype(np.float32)
              for name, value in adapter.parameters().items()}
    adapter.load(arrays)
    for row in norms(copied(adapter)):
        update = adapter.updates[row.module]
        zeros = np.zeros((update.lora_B.shape[0], update.lora_A.shape[1]), np.float32)
        if row.kind == "wte" or row.module.endswith("wte"):
            zeros = zeros.T
        update.magnitude = None  # the norm is of scaling · B A, before DoRA scales it
        assert row.update == pytest.approx(np.linalg.norm(update.merged(zeros, zeros)), rel=1e-4)
