"""`jittor-lora export --format gguf` and `gguf-adapter`, with and without Ollama's Modelfile."""

from __future__ import annotations

import json
import resource
import signal

import numpy as np
import pytest

import go_templates
import model_files
import small_run
import tiny
from jittor_lora.cli.main import main
from jittor_lora.data.prompting import Prompting
from jittor_lora.data.template import Template
from jittor_lora.formats.gguf import read_gguf
from jittor_lora.formats.gguf_file import GgufFile
from jittor_lora.lora.config import LoraConfig
from jittor_lora.session import load

LLAMA = {**model_files.LLAMA, "max_position_embeddings": 64, "eos_token_id": 299}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with `base`, and `base.gguf` with the same model in 8 bits."""
    monkeypatch.chdir(tmp_path)
    small_run.make_base(tmp_path / "base", LLAMA)
    model_files.make_gguf(tmp_path / "base.gguf", LLAMA, tiny.tensors(LLAMA), "Q8_0")
    return tmp_path


def make_adapter(folder, base="base", template=None, zero=False, **settings):
    """An adapter with random values, in PEFT's layout."""
    session = load(str(base))
    adapter = session.add_adapter(LoraConfig(**{"r": 2, "alpha": 4.0, "target_modules": ["v_proj"], **settings}))
    arrays = tiny.adapter_arrays({name: array.shape for name, array in adapter.parameters().items()})
    adapter.load({name: array * (not zero) for name, array in arrays.items()})
    if template is not None:
        session.set_prompting(Prompting(Template(template)))
    session.save_adapter(folder)


def refused(capsys, here, *arguments: str) -> str:
    before = sorted(map(str, here.rglob("*")))
    assert main(["export", *arguments]) == 2
    assert sorted(map(str, here.rglob("*"))) == before
    return capsys.readouterr().err


def test_a_merged_model(here, capsys):
    make_adapter(here / "adapter")
    assert main(["export", "--adapter", "adapter", "--format", "gguf", "--output", "new/x.gguf"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("new/x.gguf: exported as f16; largest logit difference of merging ")
    assert "Against float32, rounding moves a logit by " in said and " of 64 positions.\n" in said
    assert main(["export", "--adapter", "adapter", "--format", "gguf", "--outtype", "f32", "--output", "x.gguf"]) == 0
    assert "rounding" not in capsys.readouterr().out
    session = load("base", here / "adapter")
    session.merge()
    found, tensors = read_gguf("x.gguf"), tiny.tensors(LLAMA)
    for name, array in found.tensors.items():
        if "v_proj" in name:
            assert np.abs(array - tensors[name]).max() > 0.01
        else:
            assert np.array_equal(array, tensors[name]), name
    np.testing.assert_allclose(load("x.gguf").model.model.layers[1].self_attn.v_proj.weight.numpy(),
                               session.model.model.layers[1].self_attn.v_proj.effective_weight(), atol=1e-6)


def test_a_base_alone(here, capsys):
    assert main(["export", "--base", "base.gguf", "--format", "gguf", "--output", "x.gguf"]) == 0
    assert capsys.readouterr().out == "x.gguf: exported as kept.\n"
    old, new = GgufFile("base.gguf"), GgufFile("x.gguf")
    assert all(old.raw(name).tobytes() == new.raw(name).tobytes() for name in old) and set(old) == set(new)


@pytest.mark.parametrize("base", ["base", "base.gguf"])
def test_ollama(here, capsys, base):
    make_adapter(here / "adapter", base, "[{context}] {question} =>", use_dora=True)
    assert main(["export", "--base", base, "--adapter", "adapter", "--format", "gguf", "--ollama", "--output", "whole"]
                ) == 0
    assert capsys.readouterr().out.endswith("whole/Modelfile: for Ollama; its first lines say how to use it.\n")
    assert sorted(path.name for path in (here / "whole").iterdir()) == ["Modelfile", "model.gguf"]
    text = (here / "whole" / "Modelfile").read_text()
    assert "FROM ./model.gguf\n" in text and "ADAPTER" not in text and 'PARAMETER stop "<|endoftext|>"' in text
    program = go_templates.template_of(text)
    assert go_templates.execute(program, System="C", Prompt="Q") == "[C] Q =>"
    make_adapter(here / "plain", base)
    assert main(["export", "--base", base, "--adapter", "plain", "--format", "gguf-adapter", "--ollama", "--output",
                 "two"]) == 0
    text = (here / "two" / "Modelfile").read_text()
    own = f"FROM {here / 'base.gguf'}\n" if base == "base.gguf" else "FROM ./base.gguf\n"
    assert f"{own}ADAPTER ./adapter.gguf\n" in text
    if base == "base":
        tensors = read_gguf(here / "two" / "base.gguf").tensors
        assert all(np.abs(tensors[name] - array).max() < 0.01 for name, array in tiny.tensors(LLAMA).items())


def test_an_adapter_alone(here, capsys):
    make_adapter(here / "adapter", use_rslora=True)
    assert main(["export", "--adapter", "adapter", "--format", "gguf-adapter", "--output", "a.gguf"]) == 0
    assert capsys.readouterr().out == "a.gguf: exported.\n"
    file = GgufFile("a.gguf")
    assert set(file) == {f"blk.{i}.attn_v.weight.lora_{part}" for i in (0, 1) for part in "ab"}
    assert file.metadata["adapter.lora.alpha"] == pytest.approx(4 * 2**0.5)
    said = refused(capsys, here, "--base", "a.gguf", "--format", "gguf", "--output", "b.gguf")
    assert "a.gguf: expected a model; found an adapter of llama.cpp" in said


def test_an_adapter_that_changes_nothing(here):
    make_adapter(here / "adapter", zero=True)
    assert main(["export", "--base", "base.gguf", "--adapter", "adapter", "--format", "gguf", "--output", "x.gguf",
                 "--outtype", "requantised"]) == 0
    old, new = GgufFile("base.gguf"), GgufFile("x.gguf")
    assert all(old.raw(name).tobytes() == new.raw(name).tobytes() for name in old)


@pytest.mark.parametrize("settings, message", [
    ({"use_dora": True}, "model.layers.0.self_attn.v_proj: DoRA's magnitudes"),
    ({"target_modules": ["v_proj", "embed_tokens"]}, "model.embed_tokens: the head is the embedding"),
    ({"modules_to_save": ["input_layernorm"]}, "layers.0.input_layernorm: trained whole"),
    ({"lora_bias": True}, "v_proj: a bias on B"),
])
def test_adapters_that_llama_cpp_cannot_hold(here, capsys, settings, message):
    make_adapter(here / "adapter", **settings)
    said = refused(capsys, here, "--adapter", "adapter", "--format", "gguf-adapter", "--output", "x.gguf")
    assert message in said and "Merge it into the model instead (--format gguf)" in said


def test_models_that_llama_cpp_computes_differently(here, capsys):
    config = {**small_run.GPT2, "activation_function": "gelu"}
    small_run.make_base(here / "gpt2", config)
    make_adapter(here / "adapter", "gpt2", target_modules=["c_attn"])
    for form in ("gguf", "gguf-adapter"):
        said = refused(capsys, here, "--adapter", "adapter", "--format", form, "--output", "x.gguf")
        assert "activation_function: llama.cpp computes GPT-2 with" in said
    small_run.make_base(here / "words", LLAMA)
    content = json.loads((here / "words" / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Lowercase"}
    (here / "words" / "tokenizer.json").write_text(json.dumps(content))
    said = refused(capsys, here, "--base", "words", "--format", "gguf", "--output", "x.gguf")
    assert "llama.cpp cannot tokenize as this tokenizer does" in said and "words/tokenizer.json" in said


@pytest.mark.parametrize("arguments, message", [
    (["--format", "gguf", "--output", "x.bin"], "expected a name that ends in .gguf"),
    (["--format", "gguf", "--output", "base.gguf"], "found an existing file"),
    (["--format", "gguf", "--ollama", "--output", "base"], "expected a new or empty folder"),
    (["--format", "gguf", "--outtype", "q3", "--output", "x.gguf"], "f32, f16, bf16, q8_0, kept, requantised"),
    (["--format", "gguf", "--outtype", "kept", "--output", "x.gguf"], "expected a GGUF file as the base"),
    (["--format", "npz", "--outtype", "f16", "--output", "x.npz"], "--format gguf"),
    (["--ollama", "--output", "x"], "needs a GGUF file"),
    (["--format", "gguf-adapter", "--output", "x.gguf"], "required by --format gguf-adapter"),
    (["--format", "gguf", "--output", "base.gguf/x.gguf"], "cannot be written"),
])
def test_mistakes(here, capsys, arguments, message):
    assert message in refused(capsys, here, "--base", "base", *arguments)


@pytest.mark.parametrize("ollama", [[], ["--ollama"]])
def test_a_full_disk(here, capsys, ollama):
    output = "folder" if ollama else "x.gguf"
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        said = refused(capsys, here, "--base", "base", "--format", "gguf", *ollama, "--output", output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "cannot be written (File too large)" in said and "Free space on the disk" in said
