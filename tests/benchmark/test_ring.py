"""Which tool is measured in which storage format, and how far apart logits are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import small_run
from jittor_lora.benchmark import ring, tools
from jittor_lora.benchmark.formats import Files
from jittor_lora.benchmark.ring import EXACT, OURS, Ring
from jittor_lora.benchmark.workloads import Workload
from jittor_lora.errors import UserError
from jittor_lora.formats.gguf_file import GgufFile
from jittor_lora.formats.gguf_types import name_of
from jittor_lora.settings.bench import FORMATS, TOOLS

DECODE = Workload("one text", "decode", {"batch": 1, "prompt": 1, "new": 4}, "token", 4)
EIGHT = Workload("eight texts", "decode", {"batch": 8, "prompt": 1, "new": 4}, "token", 32)
STEP = Workload("step", "step", {"shape": (1, 8), "rows": "all"}, "token", 8)
CONTEXT = Workload("context", "context", {"prefix": [1], "questions": [[2]], "new": 4}, "question", 1)
LOGITS = Workload("logits", "logits", {"tokens": [1, 2]}, "token", 2)


class NoFiles(Files):
    def path(self, name):
        return self.folder / f"{name}.gguf"

    def title(self, name):
        return name


@pytest.fixture
def made(tmp_path):
    """A ring of all peers, and the names of the choices that it made."""
    asked = []

    def choose(name, work, contenders):
        asked.append((name, [contender.name for contender in contenders]))
        return contenders[-1].spec

    return Ring(NoFiles(tmp_path, None, tmp_path), ("f32", "q4_1"), ("fp32",), tools.PEERS, choose,
                {"mlx-lm": {"LD_PRELOAD": "blas.so"}}, tmp_path), asked


@pytest.mark.parametrize("work, f32, q4", [
    (DECODE, [OURS, "transformers", "llama.cpp", "mlx-lm with blas"], [OURS, "llama.cpp", "mlx-lm with blas"]),
    (CONTEXT, [OURS, "llama.cpp"], [OURS, "llama.cpp"]),
    (STEP, [OURS, "PEFT", "mlx-lm with blas"], [OURS, "mlx-lm with blas"]),
    (LOGITS, [EXACT, OURS, "llama.cpp", "mlx-lm with blas"], [EXACT, OURS, "llama.cpp", "mlx-lm with blas"])])
def test_ours_comes_first_in_each_format_and_peers_take_part(made, work, f32, q4):
    found = made[0].contenders(work)
    assert [(c.format, c.name) for c in found] == [("f32", n) for n in f32] + [("q4_1", n) for n in q4]
    bases = {c.name: Path(c.options["base"]).name for c in found if c.format == "q4_1" and "base" in c.options}
    assert set(bases) <= {EXACT, OURS, "llama.cpp"} and set(bases.values()) == {"q4_1.gguf"}
    assert all(c.environment == ({"LD_PRELOAD": "blas.so"} if c.name.startswith("mlx-lm") else {}) for c in found)
    if work is LOGITS:
        assert len({c.spec["path"] for c in found}) == len(found)


def test_the_fastest_settings_of_llama_cpp_are_looked_for_once_per_work(made):
    found, asked = made[0].contenders(DECODE) + made[0].contenders(EIGHT), made[1]
    assert {name for name, _ in asked} == {"one text, llama.cpp", "eight texts, llama.cpp"}
    assert {len(tried) for _, tried in asked} == {2, 3}
    assert [c.spec for c in found if c.name == "llama.cpp"] == [{"flash": False}] * 2 + [
        {"flash": False, "unified": True}] * 2


def test_peers_that_are_not_installed_are_left_out(monkeypatch):
    monkeypatch.setattr(tools.importlib.util, "find_spec", lambda name: None if name == "llama_cpp" else object())
    assert list(tools.chosen(TOOLS)) == ["peft", "mlx-lm"]
    assert tools.PEERS["llama.cpp"].missing() == ["llama-cpp-python"]


def test_every_tool_and_format_of_the_settings_is_known():
    assert tuple(tools.PEERS) == TOOLS
    assert all(set(tool.formats) <= set(FORMATS) for tool in tools.PEERS.values())


def test_files_of_a_base(tmp_path):
    files = Files(small_run.make_base(tmp_path / "base"), None, tmp_path / "formats")
    sizes = {}
    for name in ("f32", "q8_0", "q4_1"):
        kinds = {stored: name_of(entry.kind) for stored, entry in GgufFile(files.path(name)).entries.items()}
        assert kinds["blk.0.ffn_up.weight"] == name.upper() and kinds["blk.0.ffn_up.bias"] == "F32"
        assert kinds["token_embd.weight"] == ("Q8_0" if name == "q4_1" else name.upper())
        sizes[name] = files.read_per_token(name)
    config = small_run.GPT2
    width, inner = config["n_embd"], config.get("n_inner") or 4 * config["n_embd"]
    weights = config["n_layer"] * (4 * width**2 + 2 * width * inner) + config["vocab_size"] * width
    assert sizes["f32"] == 4 * weights and sizes["q8_0"] == weights * 34 // 32 and sizes["q4_1"] < sizes["q8_0"]
    with pytest.raises(UserError, match="--formats file: expected a GGUF file"):
        files.path("file")
    own = Files(tmp_path / "base", files.path("q8_0"), tmp_path)
    assert own.path("file") == files.path("q8_0") and own.title("file") == "q8_0, its file"


def test_differences_of_logits(tmp_path):
    records = []
    for name, kind, values in ((EXACT, "f32", [[1.0, 2.0], [0.0, 1.0]]), ("a", "f32", [[1.0, 2.0], [0.5, 0.0]]),
                               (EXACT, "q8_0", [[5.0, 6.0]]), ("a", "q8_0", [[5.0, 6.0]]), ("b", "q8_0", None)):
        path = tmp_path / f"{name}-{kind}.npy"
        if values:
            np.save(path, np.float32(values))
        records.append({"name": name, "format": kind, "spec": {"path": str(path)}, "check": None})
    ring.differences(records)
    assert records[1]["check"] == {"max": 1.0, "mean": 0.375, "same": 0.5}
    assert records[3]["check"] == {"max": 0.0, "mean": 0.0, "same": 1.0}
    assert records[0]["check"] is records[4]["check"] is None and not list(tmp_path.glob("*.npy"))
