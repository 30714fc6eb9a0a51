"""The random-weight base."""

from __future__ import annotations

import numpy as np

import tiny
from jittor_lora.benchmark import base, workloads


def test_random_weights_make_a_folder_that_can_be_read(tmp_path):
    source = {**tiny.GPT2, "vocab_size": 50257, "n_embd": 12, "bos_token_id": 50256, "eos_token_id": 50256}
    folder, description, _ = base.provide(None, tmp_path / "base", source)
    checkpoint, tokenizer = workloads.open_base(folder)
    assert "random" in description and tokenizer.eos_id == 50256
    again = base.RandomWeights(checkpoint.config)
    for name, values in checkpoint.tensors.items():
        np.testing.assert_array_equal(values, again[name])
    assert np.abs(checkpoint.tensors["transformer.ln_f.weight"] - 1).max() < 0.1
    assert checkpoint.tensors["transformer.ln_f.bias"].any()


def test_a_folder_is_used_unchanged(tmp_path):
    made = base.provide(None, tmp_path / "base", {**tiny.GPT2, "vocab_size": 50257}).folder
    again = base.provide(str(made), tmp_path / "other")
    assert again.folder == made and again.gguf is None
    assert not (tmp_path / "other").exists()
