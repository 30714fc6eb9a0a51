"""What `export` writes for llama.cpp's converter: read by transformers, whose classes the converter uses too."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
import transformers

import model_files
import small_run
import tiny
from jittor_lora.tasks.export import export
from parity import reference

pytestmark = pytest.mark.parity

GPT2 = {name: value for name, value in small_run.GPT2.items() if name != "n_inner"}
LLAMA = {**model_files.LLAMA, "max_position_embeddings": 64, "eos_token_id": 299}
CONFIGS = {"gpt2": GPT2, "llama": {**LLAMA, "attention_bias": True, "rope_parameters": {
    **tiny.LLAMA3_ROPE, "rope_theta": 5e5}}, **{family: {**LLAMA, "model_type": family} for family in (
        "mistral", "qwen2", "qwen3")}}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_transformers_and_gguf_read_the_folder(tmp_path, config):
    small_run.make_base(tmp_path / "base", config)
    export("gguf-ready", str(tmp_path / "base"), None, tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    state = model.state_dict()
    for name, array in tiny.tensors(config).items():
        np.testing.assert_array_equal(state[name].numpy(), array)
    tokens = tiny.tokens(40, vocab_size=300)
    np.testing.assert_allclose(reference.logits(model.eval(), tokens), reference.logits(
        reference.network(config, tiny.tensors(config)), tokens), atol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert max(tokenizer.get_vocab().values()) < model.config.vocab_size
    text = model_files.TEXTS[0]
    if config["model_type"] != "qwen2":  # for which transformers cuts texts as Qwen does, whatever the file says
        assert tokenizer(text).input_ids == model_files.make_bpe().encode(text).ids
    # What the converter asks of the tokenizer's files: merges, and the ids of special tokens.
    special = gguf.SpecialVocab(tmp_path / "out", load_merges=True)
    assert len(special.merges) > 10 and special.special_token_ids["eos"] == 299
