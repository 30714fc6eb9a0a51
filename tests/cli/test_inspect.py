from __future__ import annotations

import json

import numpy as np
import pytest

from jittor_lora.cli.main import main
from jittor_lora.formats.hugging_face import Checkpoint, write_checkpoint
from jittor_lora.model.config import ModelConfig, tensor_shapes


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A GPT-2 of one layer and width 2 that can take 64 tokens; its folder has no tokenizer, so it has GPT-2's."""
    folder = tmp_path_factory.mktemp("base")
    sizes = {"model_type": "gpt2", "vocab_size": 50257, "n_embd": 2, "n_layer": 1, "n_head": 1, "n_positions": 64}
    config = ModelConfig.from_hugging_face(sizes, "test")
    tensors = {name: np.zeros(shape, np.float32) for name, shape in tensor_shapes(config).items()}
    write_checkpoint(folder, Checkpoint(config, tensors), overwrite=True)
    return str(folder)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "Say a:", "completion": " a"}, {"prompt": "Say b:", "completion": " b"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_a_batch_and_the_counts_are_printed(base, data, capsys):
    assert main(["inspect", "--base", base, "--data", data]) == 0
    out = capsys.readouterr().out
    for text in (
        "2 completions of 2 prompts",
        "batch 1 of 1",
        ":[[ a]][[<|endoftext|>]]",
        "2 of 2 examples, the longest 5 tokens",
        "tokens read per example: 4.0 with shared prefixes",
        "scored: 4 completion tokens, 50.0% of separate examples",
        "end of text: scored in every example",
    ):
        assert text in out
    assert "\x1b" not in out


def test_what_is_too_long_is_reported(base, capsys):
    assert main(["inspect", "--base", base, "--data", "sample-dev", "--max-train", "50", "--batch", "0"]) == 0
    out = capsys.readouterr().out
    assert "context cut to a window around the answer" in out
    assert "limit 64" in out
    assert "[[" not in out


def test_colour_on_demand(base, data, capsys):
    assert main(["inspect", "--base", base, "--data", data, "--color", "always"]) == 0
    assert "\x1b[1;30;42m a\x1b[0m" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data", "sampel-train"], "did you mean sample-train?"),
        (["--data", "sample-dev", "--max-train", "9", "--batch", "3"], "the first epoch has 2 batches"),
        (["--data", "sample-dev", "--template", "{context}"], "{question} is missing"),
        (["--data", "sample-dev", "--max-tokens", "9", "--max-train", "9"], "none of its 9 examples fits into 9"),
        ([], "--data"),
    ],
)
def test_mistakes_are_messages(base, capsys, flags, words):
    assert main(["inspect", "--base", base, *flags]) == 2
    assert words in capsys.readouterr().err
