from __future__ import annotations

import json
import os

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import model_files
from jittor_lora.errors import UserError
from jittor_lora.formats.hugging_face import read_checkpoint, write_checkpoint
from model_files import make_folder, make_tensors


@pytest.fixture(params=["gpt2", "llama", "mistral", "qwen2", "qwen3"])
def config(request):
    """A config.json."""
    source = model_files.GPT2 if request.param == "gpt2" else model_files.LLAMA
    return {**source, "model_type": request.param}


@pytest.fixture
def tensors(config):
    return make_tensors(config)


@pytest.fixture
def folder(tmp_path, config, tensors):
    return make_folder(tmp_path / "model", config, tensors)


def refused(folder) -> str:
    with pytest.raises(UserError) as caught:
        read_checkpoint(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def without_prefix(tensors):
    return {name.split(".", 1)[1]: tensor for name, tensor in tensors.items()}


def same(checkpoint, tensors) -> bool:
    return list(checkpoint.tensors) == list(tensors) and all(
        np.array_equal(checkpoint.tensors[name], tensor) for name, tensor in tensors.items())


def test_reads_the_model_with_its_head(folder, tensors, config):
    checkpoint = read_checkpoint(folder)
    assert same(checkpoint, tensors)
    assert checkpoint.config.source == config and checkpoint.generation_config is None


def test_reads_the_model_without_its_head(tmp_path, config, tensors):
    assert same(read_checkpoint(make_folder(tmp_path, config, without_prefix(tensors))), tensors)


def test_a_window_shorter_than_the_models_texts_is_noted(tmp_path):
    config = {**model_files.LLAMA, "model_type": "mistral", "sliding_window": 4}
    checkpoint = read_checkpoint(make_folder(tmp_path, config, make_tensors(config)))
    assert checkpoint.config.max_positions == 4
    assert [str(tmp_path) in note and "4 tokens" in note for note in checkpoint.notes] == [True]


def test_float32_weights_stay_in_the_file(folder, tensors):
    checkpoint = read_checkpoint(folder)
    for name in tensors:
        assert np.shares_memory(checkpoint.tensors[name], checkpoint.tensors[name])


def test_half_precision_becomes_float32(tmp_path, config, tensors):
    half = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    checkpoint = read_checkpoint(make_folder(tmp_path, config, half))
    assert same(checkpoint, {name: tensor.astype(np.float32) for name, tensor in half.items()})
    assert all(tensor.dtype == np.float32 for tensor in checkpoint.tensors.values())


def test_shards(tmp_path, config, tensors):
    make_folder(tmp_path, config, {})
    (tmp_path / "model.safetensors").unlink()
    names = list(tensors)
    files = {f"model-0000{i}-of-00002.safetensors": names[i - 1 :: 2] for i in (1, 2)}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, part in files.items() for name in part}}))
    assert same(read_checkpoint(tmp_path), tensors)

    os.unlink(tmp_path / "model-00002-of-00002.safetensors")
    assert "model-00002-of-00002.safetensors" in refused(tmp_path)
    index.write_text(json.dumps({"weight_map": {"x": "../model.safetensors"}}))
    assert "../model.safetensors" in refused(tmp_path)
    index.write_text(json.dumps({"weight_map": {"x": 3}}))
    assert "weight_map" in refused(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path, config, tensors):
    make_folder(tmp_path, config, tensors)
    os.rename(tmp_path / "model.safetensors", tmp_path / "a.safetensors")
    name = next(iter(tensors))
    save_file({name: tensors[name]}, tmp_path / "b.safetensors")
    index = {"weight_map": {name: "a.safetensors", "other": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"{name}: found twice, in a.safetensors and b.safetensors" in refused(tmp_path)


def test_constants_of_older_versions_are_ignored(tmp_path, config, tensors):
    prefix = "transformer.h.0.attn." if config["model_type"] == "gpt2" else "model.layers.0.self_attn.rotary_emb."
    buffers = {prefix + name: np.ones(3, np.uint8) for name in ("bias", "masked_bias", "inv_freq")}
    expected = ("bias", "masked_bias") if config["model_type"] == "gpt2" else ("inv_freq",)
    kept = {prefix + name: buffers[prefix + name] for name in expected}
    assert same(read_checkpoint(make_folder(tmp_path, config, {**tensors, **kept})), tensors)


def test_a_tied_head_may_be_stored_too(tmp_path, config, tensors):
    embedding = next(iter(tensors.values()))
    folder = make_folder(tmp_path, config, {**tensors, "lm_head.weight": embedding})
    assert same(read_checkpoint(folder), tensors)
    make_folder(tmp_path, config, {**tensors, "lm_head.weight": embedding + 1})
    assert "lm_head.weight: differs" in refused(tmp_path)


def test_an_untied_head(tmp_path, config):
    config["tie_word_embeddings"] = False
    tensors = make_tensors(config)
    assert "lm_head.weight" in tensors
    assert same(read_checkpoint(make_folder(tmp_path, config, tensors)), tensors)
    head = tensors.pop("lm_head.weight")
    make_folder(tmp_path, config, tensors)
    assert f"lm_head.weight: missing, expected shape {head.shape}" in refused(tmp_path)


def test_all_wrong_tensors_come_in_one_error(tmp_path, config, tensors):
    missing, misshapen, whole, *_ = tensors
    broken = {**tensors, "new.weight": np.ones(2, np.float32), whole: np.ones(tensors[whole].shape, np.int64),
              misshapen: np.ones((5, 5), np.float32)}
    del broken[missing]
    text = refused(make_folder(tmp_path, config, broken))
    assert f"{missing}: missing, expected shape {tensors[missing].shape}" in text
    assert f"{misshapen}: expected shape {tensors[misshapen].shape}; found (5, 5)" in text
    assert f"{whole}: expected one of F64, F32, F16, BF16; found I64" in text
    assert "new.weight: unexpected, of shape (2,)" in text


def test_a_long_list_of_problems_is_truncated(tmp_path, config, tensors):
    folder = make_folder(tmp_path, {**config, "n_layer": 50, "num_hidden_layers": 50}, tensors)
    text = refused(folder)
    assert text.count("missing") == 20 and text.count("\n") == 21 and text.endswith(" more")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "found an empty folder"),
        ({"notes.txt": ""}, "found notes.txt"),
        ({"adapter_config.json": "{}"}, "found an adapter"),
        ({"model.Q4_1.gguf": ""}, "Name the .gguf file itself"),
        ({"config.json": "{"}, "expected JSON"),
        ({"config.json": "[]"}, "expected a JSON object; found list"),
        ({"config.json": '{"model_type": "bert"}'}, "model_type"),
        ({"config.json": '{"model_type": "gpt2"}'}, "expected model.safetensors"),
        ({"config.json": '{"model_type": "gpt2"}', "pytorch_model.bin": ""}, "save_pretrained"),
        ({"config.json": '{"model_type": "gpt2"}', "model.safetensors": "x"}, "found only 1 bytes"),
    ],
)
def test_folders_without_a_usable_model(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert message in refused(tmp_path)


def test_a_file_in_place_of_a_folder(folder, tmp_path):
    assert "no such folder" in refused(tmp_path / "absent")
    assert "Name its folder" in refused(folder / "model.safetensors")
    assert "expected a folder" in refused(folder / "config.json")


def test_truncated_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    assert "truncated" in refused(folder)


def test_writing_and_reading_back_keeps_every_byte(tmp_path, config, tensors):
    config.update(torch_dtype="bfloat16", architectures=["Other"], kept={"as": ["it", "is"]})
    folder = make_folder(tmp_path / "a", config, without_prefix(tensors))
    (folder / "generation_config.json").write_text('{"max_length": 7}')
    write_checkpoint(tmp_path / "b", read_checkpoint(folder))
    again = read_checkpoint(tmp_path / "b")
    assert same(again, tensors) and again.generation_config == {"max_length": 7}
    architecture = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM",
                    "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[config["model_type"]]
    assert again.config.source == {**config, "torch_dtype": "float32", "architectures": [architecture]}
    assert list(load_file(tmp_path / "b" / "model.safetensors")) and len(list((tmp_path / "b").iterdir())) == 3


def test_a_folder_with_a_model_is_overwritten_only_on_request(folder, tensors, tmp_path):
    checkpoint = read_checkpoint(folder)
    with pytest.raises(UserError, match="already contains a model"):
        write_checkpoint(folder, checkpoint)
    parts = ("model-00001-of-00001.safetensors", "model.safetensors.index.json")
    for name in (*parts, "generation_config.json", "kept.txt"):
        (folder / name).write_text("old")
    write_checkpoint(folder, checkpoint, overwrite=True)
    assert same(read_checkpoint(folder), tensors)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "kept.txt", "model.safetensors"]

    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="already contains an adapter"):
        write_checkpoint(tmp_path / "adapter", checkpoint, overwrite=True)


def test_a_failed_write_leaves_the_folder_unchanged(folder, tensors):
    checkpoint = read_checkpoint(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    checkpoint.tensors = {**tensors, next(iter(tensors)): np.ones(3, np.float32)}
    with pytest.raises(ValueError, match="expected shape"):
        write_checkpoint(folder, checkpoint, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
