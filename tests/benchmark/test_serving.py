"""benchmarks/serving.py and benchmarks/serving_load.py: their client and adapters, and short runs of this package."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

import model_files
import small_run
from jittor_lora.model.config import ModelConfig
from needs import needs_serve
from programs import load_program

BASE = {**model_files.LLAMA, "max_position_embeddings": 256, "bos_token_id": 299, "eos_token_id": 299}


@pytest.fixture(autouse=True)
def beside(monkeypatch):
    """The programs import each other, as scripts of one folder."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))


def part(name):
    return importlib.import_module(f"serving_{name}")


def events(*several, times=None):
    """Pieces of a stream as a client gets them, one per event."""
    lines = [f"data: {json.dumps(event)}\r\n\r\n".encode() for event in several] + [b"data: [DONE]\n\n"]
    return [(float(i + 1), line) for i, line in enumerate(lines)]


def test_streams_are_read():
    pieces = events({"choices": [{"index": 0, "text": ""}]}, {"choices": [{"index": 0, "text": " Par"}]},
                    {"choices": [{"index": 1, "text": "x"}]},
                    {"choices": [{"index": 0, "text": "is", "finish_reason": "stop"}]},
                    {"choices": [], "usage": {"completion_tokens": 7, "prompt_tokens": 9,
                                              "prompt_tokens_details": {"cached_tokens": 4}}})
    cut = [(1.5, b"".join(piece for _, piece in pieces)[:60]), (2.5, b"".join(piece for _, piece in pieces)[60:])]
    for stream, first in ((pieces, 2.0), (cut, 2.5)):
        reply = part("client").parsed(stream)
        assert reply.texts == {0: " Paris", 1: "x"} and reply.reasons == {0: "stop"}
        assert (reply.first, reply.tokens, reply.prompt_tokens, reply.cached_tokens) == (first, 7, 9, 4)
    chat = part("client").parsed(events({"choices": [{"index": 0, "delta": {"role": "assistant"}}]},
                                        {"choices": [{"index": 0, "delta": {"content": "Hi"}}]}))
    assert chat.texts == {0: "Hi"} and chat.tokens == 1
    found = part("client").parsed(events({"question": 0, "delta": "42"}, {"question": 1, "spans": [
        {"text": "x", "start": 3, "end": 4}]}, {"question": 0, "delta": "", "finish_reason": "stop", "tokens": 2}))
    assert found.texts == {0: "42", 1: "3:4"}
    with pytest.raises(RuntimeError, match="in the stream"):
        part("client").parsed(events({"error": {"message": "no"}}))


def test_quantiles():
    assert [part("tables").quantile([3, 1, 2, 4], share) for share in (0.25, 0.5, 0.99, 1.0)] == [1, 2, 4, 4]


def test_adapters_in_three_formats(tmp_path):
    """A B of a peer's file gives the update of the same weight, in the order of rows that the peer has."""
    gguf = pytest.importorskip("gguf")
    from safetensors.numpy import load_file
    config = ModelConfig.from_hugging_face(BASE, "config.json")
    adapter = part("adapters").write_random(tmp_path / "peft", config, 1)
    pairs, rank, alpha = part("adapters").read(adapter)
    assert len(pairs) == 7 * config.layers and (rank, alpha) == (8, 16.0)
    part("adapters").write_gguf(adapter, tmp_path / "a.gguf", config)
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    written = {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}
    assert len(written) == 2 * len(pairs)
    a, b = pairs["model.layers.1.self_attn.k_proj"]
    weight = np.arange(len(b) * a.shape[1], dtype=np.float32).reshape(len(b), a.shape[1])
    half = config.head_dim // 2
    rows = [head * 2 * half + i * half + j for head in range(config.kv_heads) for j in range(half) for i in range(2)]
    update = written["blk.1.attn_k.weight.lora_b"] @ written["blk.1.attn_k.weight.lora_a"]
    np.testing.assert_allclose(weight[rows] + update, (weight + b @ a)[rows], rtol=1e-6)
    np.testing.assert_array_equal(written["blk.0.ffn_down.weight.lora_b"], pairs["model.layers.0.mlp.down_proj"][1])
    part("adapters").write_mlx(adapter, tmp_path / "mlx", config)
    arrays = load_file(tmp_path / "mlx" / "adapters.safetensors")
    np.testing.assert_array_equal(arrays["model.layers.1.self_attn.k_proj.lora_a"], a.T)
    assert json.loads((tmp_path / "mlx" / "adapter_config.json").read_text())["lora_parameters"]["scale"] == 2.0


@needs_serve
@pytest.mark.slow
def test_a_short_run(tmp_path, capsys):
    small_run.make_base(tmp_path / "base", BASE)
    serving = load_program("benchmarks/serving.py")
    serving.main(["--base", str(tmp_path / "base"), "--output", str(tmp_path / "results"), "--quick"])
    found = json.loads((tmp_path / "results" / "serving.json").read_text())
    said = capsys.readouterr().out
    assert len(found["results"]) == 8 and "### Five questions of a context" in said
    for result in found["results"]:
        for record in result["contenders"]:
            assert "error" not in record, record["error"]
            run, = record["runs"]
            assert run["tokens"] > 0 and run["seconds"] > 0 and len(run["first"]) == run["units"]
            if result["part"] == "contexts":
                assert run["cached_tokens"] > 0  # the questions share their context
            else:
                assert run["cached_tokens"] < run["prompt_tokens"] / 4  # requests know nothing of each other


@pytest.fixture
def load_arguments(tmp_path):
    small_run.make_base(tmp_path / "base", BASE)
    return ["--base", str(tmp_path / "base"), "--output", str(tmp_path / "results"), "--requests", "300",
            "--kill-requests", "400", "--distinct", "40", "--clients", "16", "--words", "8", "--new", "12",
            "--adapter-scale", "0.3", "--cache", "1", "--hang-up", "0.1"]


@needs_serve
@pytest.mark.slow
def test_a_short_load(tmp_path, load_arguments):
    program = load_program("benchmarks/serving_load.py")
    program.MOST_MEMORY = 1.0  # too short for a verdict
    assert program.main(load_arguments) == 0
    found = json.loads((tmp_path / "results" / "serving_load.json").read_text())
    assert found["load"]["right"] == 300 and found["kill"]["right"] == 400
    assert found["load"]["hung_up"] > 0 and found["load"]["sent_again"] == {}
    assert sum(found["kill"]["sent_again"].values()) > 0  # it was killed while clients waited
    assert found["load"]["latency"]["p99"] > 0 and found["samples"][-1]["done"] <= 300


@needs_serve
@pytest.mark.slow
def test_wrong_answers_are_found(tmp_path, load_arguments, monkeypatch):
    program = load_program("benchmarks/serving_load.py")
    alone = program.alone

    def one_wrong(args, adapters):
        requests, answers, what = alone(args, adapters)
        return requests, [{**answers[0], 0: "something else"}, *answers[1:]], what

    monkeypatch.setattr(program, "alone", one_wrong)
    load_arguments[load_arguments.index("--kill-requests") + 1] = "0"
    assert program.main(load_arguments) == 1
    found = json.loads((tmp_path / "results" / "serving_load.json").read_text())["load"]
    assert found["wrong"] > 0 and found["right"] == 300 - found["wrong"] and "something else" in found["examples"][0]
