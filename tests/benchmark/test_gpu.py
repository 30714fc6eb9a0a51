"""benchmarks/gpu.sh and its parts, without a GPU: on the CPU, with tiny models, and on the emulated CUDA backend."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cuda_emulator import emulated
from jittor_lora import ops
from jittor_lora.ops import backend
from measurements import cells, record

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def beside(monkeypatch):
    """The programs import each other, as scripts of one folder."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def part(name):
    return importlib.import_module(f"gpu_{name}")


def lines(path: Path) -> list[dict]:
    return list(part("results").read(path))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    sys.path.insert(0, str(ROOT / "benchmarks"))
    path = tmp_path_factory.mktemp("reference") / "reference.npz"
    part("checks").write(path, tiny=True)
    sys.path.remove(str(ROOT / "benchmarks"))
    return path


def compare(reference, path, precision="fp32", **more):
    return part("checks").compare(reference, part("results").Results(path), True, precision, **more)


def test_lines_are_kept_when_a_run_is_cut_off(tmp_path):
    results = part("results").Results(tmp_path / "results.jsonl")
    results.add("a", value=1.5)
    results.add("b", value=None)
    with open(results.path, "a") as stream:
        stream.write('{"part": "c", "val')
    assert [(line["part"], line["value"]) for line in lines(results.path)] == [("a", 1.5), ("b", None)]


@pytest.mark.slow
def test_kernels_agree_with_their_definitions(reference, tmp_path):
    assert compare(reference, tmp_path / "results.jsonl")
    found = lines(tmp_path / "results.jsonl")
    names = [line["name"] for line in found]
    assert len(names) == len(set(names)) and set(names) == set(np.load(reference).files)
    assert {line["group"] for line in found} == {*backend.OPERATIONS, "networks"} - {"decoding"}


@pytest.mark.slow
def test_a_wrong_kernel_is_found_and_a_broken_one_stops_no_other(reference, tmp_path, monkeypatch):
    right = ops.gelu_tanh
    monkeypatch.setattr(ops, "gelu_tanh", lambda x: right(x) * 1.0001)
    monkeypatch.setattr(ops, "rotary", lambda *arguments: 1 / 0)
    assert not compare(reference, tmp_path / "results.jsonl", groups=["activations", "arrays"])
    found = {line["name"]: line for line in lines(tmp_path / "results.jsonl")}
    assert {name for name, line in found.items() if not line["ok"]} == {"GELU", "GELU, gradient 1", "rotary"}
    assert "ZeroDivisionError" in found["rotary"]["failure"] and found["rows"]["ok"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_emulated_cuda_backend_agrees(reference, tmp_path, precision):
    with emulated():
        assert compare(reference, tmp_path / "results.jsonl", precision)
    found = lines(tmp_path / "results.jsonl")
    assert {line["group"] for line in found if line["kernel"]} >= {"linear", "attention", "cross_entropy"}


@pytest.mark.parametrize("found, expected, error", [([3.0, 4.0], [3.0, 4.0], 0), ([3.0, 4.5], [3.0, 4.0], 0.1),
                                                    ([np.nan, 4.0], [3.0, 4.0], np.inf), ([3.0], [3.0, 4.0], np.inf)])
def test_difference(found, expected, error):
    assert part("checks").difference(np.float32(found), np.float32(expected)) == pytest.approx(error)


@pytest.mark.parametrize("kind", ["training", "steps", "decoding", "stock", "compiled", "compiled-decoding", "cpu"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_ours_comes_first_and_peers_have_names_of_their_own(kind, precision):
    speed = part("speed")
    found = speed.contenders(kind, precision, {"PYTHONPATH": "elsewhere"})
    assert found[0].name == speed.OURS and found[0].environment == {}
    assert len({contender.name for contender in found}) == len(found) >= 2
    for contender in found[1:]:
        assert (contender.environment == {}) == (contender.module == "ours") == (kind == "stock")


@pytest.mark.slow
def test_a_race_of_ours_and_its_table(tmp_path, bases):
    part("speed").main(["training", "smollm2", "fp32", "--bases", str(bases), "--output", str(tmp_path), "--device",
                        "cpu", "--threads", "1", "--tiny", "--no-peers"])
    part("speed").main(["decoding", "gpt2", "fp32", "--bases", str(bases), "--output", str(tmp_path), "--device", "cpu",
                        "--threads", "1", "--tiny", "--no-peers"])
    found = lines(tmp_path / "results.jsonl")
    assert [line["job"] for line in found] == ["step", "step", "squad", *["decode"] * 4, "evaluate"]
    made = part("report").tables(found)
    assert [row["model"] for row in cells(made["training"])] == ["tiny smollm2"] * 3
    assert [row["tool"] for row in cells(made["decoding"])] == ["**jittor-lora**"] * 5
    part("speed").main(["steps", "gpt2", "fp32", "--bases", str(bases), "--output", str(tmp_path), "--device", "cuda",
                        "--threads", "1", "--tiny", "--no-peers"])
    assert "not on cuda" in lines(tmp_path / "results.jsonl")[-1]["contenders"][0]["error"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    subprocess.run([sys.executable, ROOT / "benchmarks" / "gpu_bases.py", folder, "--tiny"], check=True)
    return folder


@pytest.mark.slow
def test_resumed_runs(tmp_path, bases):
    folders = ["--bases", str(bases), "--output", str(tmp_path), "--work", str(tmp_path / "runs")]
    assert part("resume").main(folders) == 0
    assert [line["same_bits"] for line in lines(tmp_path / "results.jsonl")] == [True] * 3


def sample(kind="training", **more):
    ours, peer = record("jittor-lora", [0.5, 0.25, 0.5], check={"loss": 2.0}, ours=True, device_mib=100.0), record(
        "PEFT", [1.0], check={"loss": 2.0001}, device_mib=400.0)
    return {"part": "speed", "kind": kind, "model": "GPT-2 124M", "precision": "bf16", "workload": "steps",
            "job": "step", "device": "cuda", "threads": 4, "unit": "token", "units": 100, "gflop": None,
            "contenders": [ours, peer], **more}


MACHINE = {"part": "machine", "time": 1700000000.0, "card": "NVIDIA X 1", "cards": ["NVIDIA X 1 (…)"], "nvcc": "12.4",
           "driver": "12.8", "problem": "", "system": {"cpu": "a CPU", "cores": 4, "instructions": ["avx2"],
                                                       "jittor_lora": "0.1.0", "torch": None}}
CHECK = {"part": "checks", "precision": "fp32", "group": "norms", "stock": False, "device": "cuda", "kernel": True,
         "name": "layer norm", "error": 2e-6, "bound": 1e-5, "ok": True}


def test_tables():
    made = part("report").tables([
        MACHINE, sample(), sample("cpu", threads=8), sample(job="decode", workload="1 text"), CHECK,
        {**CHECK, "name": "RMS norm", "error": None, "ok": False},
        {"part": "part", "name": "x", "seconds": 3, "status": 124},
        {"part": "resume", "name": "r", "same_bits": False, "adapter": 0.5, "losses": 0.25, "ok": False},
        {"part": "profile", "side": "ours", "model": "GPT-2 124M", "precision": "bf16", "rows": "all",
         "launches": 400.0, "copies": 3.0, "busy_ms": 5.0, "step_ms": 7.5,
         "kernels": [{"name": "k", "times": 12.0, "ms": 2.0}]},
        {"part": "kernels", "name": "GELU", "precision": "fp32", "seconds": 2e-5, "bytes": 3e7, "flops": 0.0,
         "share": 0.5}])
    ours, peer = cells(made["training"])
    assert (ours["median ms"], ours["min ms"], ours["units per second"]) == ("500", "250", "200")
    assert (ours["GPU MiB"], ours["same result"]) == ("100", "–")
    assert (peer["time / ours"], peer["GPU MiB"], peer["same result"]) == ("2.00", "400", "loss ±5e-05")
    assert cells(made["cpu"])[0]["threads"] == "8" and cells(made["decoding"])[0]["work"] == "1 text"
    [checked] = cells(made["checks"])
    assert (checked["largest difference"], checked["within"], checked["arrays"]) == ("2.0e-06", "**RMS norm**", "2")
    assert cells(made["profile"])[0]["launches"] == "400" and cells(made["longest"])[0]["times a step"] == "12"
    assert cells(made["resume"])[0]["as promised"] == "**no**" and cells(made["parts"])[0]["status"] == "cut off"
    assert "CUDA 12.4, driver for CUDA 12.8; a CPU" in made["machine"]
    assert cells(made["kernels"])[0]["share of the bound"] == "50 %"


def test_one_file_of_all_lines_and_a_page(tmp_path, capsys):
    report, results = part("report"), part("results").Results(tmp_path / "results.jsonl")
    for line in (MACHINE, CHECK):
        results.add(**line)
    report.main([str(results.path), "--output", str(tmp_path / "out")])
    [file] = (tmp_path / "out").glob("*.json")
    assert file.name.startswith("cuda-nvidia-x-1-") and "Agreement" in (tmp_path / "out" / "report.md").read_text()
    page = tmp_path / "page.md"
    page.write_text("<!-- bench: checks x -->\n<!-- /bench -->\n<!-- bench: cpu x -->\nold\n<!-- /bench -->\n")
    report.main([str(file), "--page", str(page), "--machine", "x"])
    assert "| norms | kernels | fp32 |" in page.read_text() and "old" in page.read_text()
    assert "Not measured: cpu" in capsys.readouterr().err


def run_script(folder: Path, **variables: str) -> tuple[int, str]:
    done = subprocess.run(["bash", ROOT / "benchmarks" / "gpu.sh"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, env={**os.environ, "OUT": str(folder), "PYTHON": sys.executable, "TINY": "1",
                                          "nvcc_path": "", **variables})
    return done.returncode, done.stdout


def test_without_a_gpu_the_script_says_so(tmp_path):
    code, said = run_script(tmp_path)
    assert code == 1 and "not ready to measure" in said
    assert [line["part"] for line in lines(tmp_path / "results.jsonl")] == ["machine"]


@pytest.mark.slow
def test_the_script(tmp_path):
    """Checks pass, what this machine cannot do is noted, and all is reported."""
    code, said = run_script(tmp_path, DEVICE="cpu", LIMIT="4800", PARTS="checks steps-gpt2-tf32 kernels")
    assert code == 0, said
    found = lines(tmp_path / "results.jsonl")
    assert {line["name"]: line["status"] for line in found if line["part"] == "part"} == {
        "checks": 0, "steps-gpt2-tf32": 0, "kernels": 0}, said
    assert all(line["ok"] for line in found if line["part"] == "checks")
    assert "tf32" in next(line for line in found if line["part"] == "speed")["contenders"][0]["error"]
    assert "## Kernels" in (tmp_path / "report.md").read_text()


@pytest.mark.slow
def test_parts_without_time_are_named(tmp_path):
    code, said = run_script(tmp_path, DEVICE="cpu", LIMIT="1", PARTS="doctor checks", REFERENCE="none.npz")
    assert code == 0 and "no time left for checks" in said
    assert [line["status"] for line in lines(tmp_path / "results.jsonl") if line["part"] == "part"] == [-1, -1]


def test_wheels_go_beside_the_packages(tmp_path, bare_wheel):
    """Those of numpy and Jittor where peers do not see them."""
    code, said = run_script(tmp_path / "out", WHEELS=str(bare_wheel), LIMIT="1", PARTS="none")
    assert "not ready to measure" in said and code == 1, said
    assert (tmp_path / "out" / "work" / "site" / "beside_torch.py").is_file()
    assert (tmp_path / "out" / "work" / "own" / "jittor_stub.py").is_file()


@pytest.fixture
def bare_wheel(tmp_path):
    """A folder with two wheels of one file each."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name, module in (("jittor", "jittor_stub"), ("other", "beside_torch")):
        info = f"{name}-9.9.dist-info"
        with zipfile.ZipFile(folder / f"{name}-9.9-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{module}.py", "")
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
                                            "Tag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    return folder


def test_results_are_json_lines(tmp_path):
    results = part("results").Results(tmp_path / "results.jsonl")
    results.add("text", said="über\nzwei Zeilen")
    assert json.loads(results.path.read_text())["said"] == "über\nzwei Zeilen"
