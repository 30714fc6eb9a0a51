"""What `export` writes, run in llama.cpp: logits, greedy texts and token ids."""

from __future__ import annotations

import json
import subprocess
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch

import gguf_tokenizers
import model_files
import small_run
import tiny
from jittor_lora.data.layout import Layout
from jittor_lora.errors import UserError
from jittor_lora.formats.bases import resolve_base
from jittor_lora.formats.gguf import read_gguf
from jittor_lora.lora.config import LoraConfig
from jittor_lora.model.load import build_model
from jittor_lora.session import Session, load
from jittor_lora.system.runtime import jt
from jittor_lora.tasks.export_gguf import export_adapter, export_gguf, export_model
from needs import needs_llama_cpp, peer_python
from parity import reference

pytestmark = [pytest.mark.parity, needs_llama_cpp]

GPT2 = small_run.GPT2
LLAMA = {**model_files.LLAMA, "max_position_embeddings": 256, "eos_token_id": 299}
ROPE = {**tiny.LLAMA3_ROPE, "original_max_position_embeddings": 32, "rope_theta": 500.0}
CONFIGS = {
    "gpt2": GPT2, "gpt2-untied": {**GPT2, "tie_word_embeddings": False, "n_inner": 96},
    "llama3-biased": {**LLAMA, "attention_bias": True, "mlp_bias": True, "rope_parameters": ROPE},
    "llama-linear": {**LLAMA, "rope_scaling": {"rope_type": "linear", "factor": 2.5}, "num_key_value_heads": 1},
    "mistral": {**LLAMA, "model_type": "mistral", "tie_word_embeddings": False},
    "qwen2": {**LLAMA, "model_type": "qwen2", "rope_theta": 1e6},
    "qwen3": {**LLAMA, "model_type": "qwen3", "head_dim": 10},
}
EXACT = 2e-4  # logits of some 12; the order of sums differs
# On average: llama.cpp rounds what it multiplies by a matrix, to float16 or in blocks to 8 bits.
ROUNDED = {"f16": 0.01, "q8_0": 0.1, "kept": 0.1}
TOKENS = [int(token) for token in tiny.tokens(60, vocab_size=300)]


def run(folder: Path, *requests: dict) -> dict[str, np.ndarray]:
    (folder / "requests.json").write_text(json.dumps(requests))
    program = Path(__file__).with_name("in_llama_cpp.py")
    done = subprocess.run([peer_python("llama_cpp"), str(program), "requests.json", "answers.npz"], cwd=folder,
                          stderr=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(folder / "answers.npz"))


def logits(model, tokens=TOKENS) -> np.ndarray:
    with jt.no_grad():
        hidden = model.hidden(np.array(tokens, np.int32), np.arange(len(tokens), dtype=np.int32),
                              Layout.plain(len(tokens)))
        return model.logits(hidden).numpy()


def greedy(model, count: int, tokens=TOKENS) -> list[int]:
    found: list[int] = []
    for _ in range(count):
        found.append(int(logits(model, [*tokens, *found])[-1].argmax()))
    return found


def of_file(path: Path) -> np.ndarray:
    checkpoint = read_gguf(path)
    return logits(build_model(checkpoint.config, checkpoint.tensors))


def adapted(session: Session, **settings) -> Session:
    adapter = session.add_adapter(LoraConfig(**{"r": 4, "alpha": 8.0, "target_modules": "all-linear", **settings}))
    adapter.load(tiny.adapter_arrays({name: array.shape for name, array in adapter.parameters().items()}))
    return session


class Rounded(torch.nn.Module):
    """llama.cpp's GELU: a table of float16 numbers."""

    def forward(self, x):
        y = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x <= -10, 0.0, torch.where(x >= 10, x, y))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_texts(tmp_path, name):
    config = CONFIGS[name]
    small_run.make_base(tmp_path / "base", config)
    session = load(str(tmp_path / "base"))
    for out_type in ("f32", "f16", "q8_0"):
        export_model(session, tmp_path / f"base-{out_type}.gguf", out_type)
    base = logits(session.model)
    base_text = greedy(session.model, 12)
    adapted(session, use_rslora=True, rank_pattern={"1.mlp": 2, "h.1.mlp": 2}, alpha_pattern={"0.mlp": 5.0})
    export_adapter(session, tmp_path / "adapter.gguf")
    export_model(session, tmp_path / "merged-f32.gguf", "f32")
    f32 = {"model": "base-f32.gguf", "tokens": TOKENS, "greedy": 12}
    found = run(tmp_path, f32, {**f32, "adapter": "adapter.gguf"}, {**f32, "model": "merged-f32.gguf"},
                {**f32, "model": "base-f16.gguf"}, {**f32, "model": "base-q8_0.gguf"})
    changed, text = logits(session.model), greedy(session.model, 12)
    assert np.abs(changed - base).max() > 1.0
    exact = EXACT
    if config["model_type"] == "gpt2":  # its table of GELU moves logits more than any mistake in the file need do
        exact = 0.02
        theirs = reference.network(config, tiny.tensors(config))
        for block in theirs.transformer.h:
            block.mlp.act = Rounded()
        np.testing.assert_allclose(found["logits-0"], reference.logits(theirs, TOKENS), atol=2e-3)
    np.testing.assert_allclose(found["logits-0"], base, atol=exact)
    np.testing.assert_allclose(found["logits-1"], changed, atol=exact)
    np.testing.assert_allclose(found["logits-2"], changed, atol=exact)
    assert found["greedy-0"].tolist() == base_text
    assert found["greedy-1"].tolist() == found["greedy-2"].tolist() == text
    for i, out_type in ((3, "f16"), (4, "q8_0")):
        expected = of_file(tmp_path / f"base-{out_type}.gguf")
        assert np.abs(found[f"logits-{i}"] - expected).mean() < ROUNDED[out_type]


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "Q8_0"])
def test_a_gguf_base(tmp_path, kind):
    config = {**LLAMA, "num_hidden_layers": 2}
    model_files.make_gguf(tmp_path / "base.gguf", config, tiny.tensors(config), kind)
    session = adapted(load(str(tmp_path / "base.gguf")), target_modules=["v_proj", "down_proj"], init="pissa")
    session.save_adapter(tmp_path / "adapter", convert=False)
    export_gguf("gguf-adapter", str(tmp_path / "base.gguf"), tmp_path / "adapter", tmp_path / "adapter.gguf")
    for out_type in ("f32", "kept", "requantised"):
        export_model(session, tmp_path / f"{out_type}.gguf", out_type)
    request = {"tokens": TOKENS}
    found = run(tmp_path, {**request, "model": "f32.gguf"}, {**request, "model": "kept.gguf"},
                {**request, "model": "requantised.gguf"},
                {**request, "model": "base.gguf", "adapter": "adapter.gguf"})
    expected = logits(session.model)
    np.testing.assert_allclose(found["logits-0"], expected, atol=EXACT)
    again = of_file(tmp_path / "requantised.gguf")
    assert [np.abs(found[f"logits-{i}"] - known).mean() < ROUNDED["kept"]
            for i, known in ((1, expected), (2, again), (3, expected))] == [True] * 3


def test_an_adapter_of_embedding_and_head(tmp_path):
    config = {**LLAMA, "tie_word_embeddings": False}
    small_run.make_base(tmp_path / "base", config)
    session = load(str(tmp_path / "base"))
    export_model(session, tmp_path / "base.gguf", "f32")
    adapted(session, target_modules=["embed_tokens", "lm_head", "k_proj"])
    export_adapter(session, tmp_path / "adapter.gguf")
    found = run(tmp_path, {"model": "base.gguf", "adapter": "adapter.gguf", "tokens": TOKENS})
    np.testing.assert_allclose(found["logits-0"], logits(session.model), atol=EXACT)


@pytest.mark.parametrize("pre", gguf_tokenizers.PRES)
def test_token_ids(tmp_path, pre):
    made = gguf_tokenizers.byte_level(pre)
    vocabulary = made.get_vocab()
    small_run.make_base(tmp_path / "base", {**LLAMA, "vocab_size": len(vocabulary) + 3})
    made.save(str(tmp_path / "base" / "tokenizer.json"))
    (tmp_path / "base" / "tokenizer_config.json").write_text(json.dumps({
        "bos_token": gguf_tokenizers.BEGIN, "eos_token": gguf_tokenizers.END, "pad_token": gguf_tokenizers.PAD}))
    session = load(str(tmp_path / "base"))
    export_model(session, tmp_path / "model.gguf", "f32")
    texts = [*gguf_tokenizers.HARD, *gguf_tokenizers.hostile()]
    if pre == "qwen2":  # llama.cpp does not compose characters
        texts = [text for text in texts if unicodedata.is_normalized("NFC", text)]
    found = run(tmp_path, {"model": "model.gguf", "texts": texts})
    for name, special in (("ids-0", "text"), ("special-0", "token")):
        session.tokenizer.special_tokens = special
        ours = [session.tokenizer.begin(text) for text in texts]
        theirs = [list(map(int, part.split())) for part in " ".join(map(str, found[name])).split("-1")[:-1]]
        differ = [(text, a, b) for text, a, b in zip(texts, ours, theirs) if a != b]
        assert not differ, (len(differ), differ[:3])


@pytest.mark.slow
def test_smollm2(tmp_path):
    try:
        base = resolve_base("smollm2-135m")
    except UserError as error:
        pytest.skip(f"needs SmolLM2, which cannot be fetched here: {error}")
    session = load(base)
    rank = {"r": 8, "target_modules": ["q_proj", "k_proj", "v_proj"]}
    adapter = session.add_adapter(LoraConfig(**rank))
    adapter.load({name: 0.1 * array for name, array in tiny.adapter_arrays(
        {name: array.shape for name, array in adapter.parameters().items()}).items()})
    export_adapter(session, tmp_path / "adapter.gguf")
    for out_type in ("f32", "kept"):
        export_model(session, tmp_path / f"{out_type}.gguf", out_type)
    texts = ["Question: Who built the Eiffel Tower?\nAnswer:", "北京大学在哪里？", *gguf_tokenizers.HARD]
    tokens = session.tokenizer.begin(texts[0])
    request = {"model": "f32.gguf", "tokens": tokens, "greedy": 6, "texts": texts}
    found = run(tmp_path, request, {**request, "model": "kept.gguf"},
                {**request, "model": str(base.path), "adapter": "adapter.gguf"})
    expected = logits(session.model, tokens)
    np.testing.assert_allclose(found["logits-0"], expected, atol=2e-3)
    assert found["greedy-0"].tolist() == greedy(session.model, 6, tokens)
    ids = [id_ for text in texts for id_ in [*session.tokenizer.begin(text), -1]]
    assert found["ids-0"].tolist() == ids
    for i in (1, 2):  # activations rounded to 8 bits
        assert np.abs(found[f"logits-{i}"] - expected).mean() < 0.2
