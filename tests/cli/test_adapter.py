"""The actions of `jittor-lora adapter`, and what they say where they refuse."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from jittor_lora.cli.main import main
from jittor_lora.data.prompting import Prompting
from jittor_lora.data.template import Template
from jittor_lora.formats.adapter_folder import CONFIG_FILE, WEIGHTS_FILE, read_adapter_folder, write_adapter_folder
from jittor_lora.formats.prompting import read_prompting, write_prompting
from jittor_lora.lora.combine import Factors

SETTINGS = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "gpt2", "r": 3, "lora_alpha": 6,
            "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "lora_dropout": 0.1}


def make(folder, seed=0, rank=3, width=8, **settings):
    draw = np.random.default_rng(seed)
    factors = {f"transformer.h.{i}.{kind}": Factors(draw.standard_normal((rank, width), np.float32),
                                                    draw.standard_normal((out * width, rank), np.float32), 2.0)
               for i in (0, 1, 10) for kind, out in (("attn.c_attn", 3), ("mlp.c_fc", 4))}
    write_adapter_folder(folder, {**SETTINGS, "r": rank, "lora_alpha": 2 * rank, **settings}, factors)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    make(tmp_path / "one")
    make(tmp_path / "run" / "adapter", seed=1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def done(capsys, *arguments: str) -> str:
    assert main(["adapter", *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys, here, *arguments: str) -> str:
    before = sorted(map(str, here.rglob("*")))
    assert main(["adapter", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("jittor-lora: ") and "Traceback" not in err
    assert sorted(map(str, here.rglob("*"))) == before
    return err


def test_no_action_needs_jittor_or_a_base(here):
    code = ("import sys; from jittor_lora.cli.main import main; "
            "codes = [main(a.split()) for a in sys.argv[1:]]; "
            "print(codes, [m for m in ('jittor', 'matplotlib', 'torch', 'transformers') if m in sys.modules])")
    actions = ["adapter list .", "adapter info one", "adapter diff one run",
               "adapter combine one run --method ties --density 0.5 --output both", "adapter convert one one.npz",
               "adapter convert one.npz again"]
    out = subprocess.run([sys.executable, "-c", code, *actions], capture_output=True, text=True).stdout
    assert out.splitlines()[-1] == "[0, 0, 0, 0, 0, 0] []"


def test_list(here, capsys):
    (here / "broken").mkdir()
    (here / "broken" / CONFIG_FILE).write_text("{}")
    assert main(["adapter", "list", "."]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split() == ["folder", "base", "r", "alpha", "targets", "parameters", "size"]
    assert [line.split()[0] for line in lines[1:]] == ["one", "run/adapter"]
    assert lines[1].split()[1:6] == ["gpt2", "3", "6", "c_attn,", "c_fc"] and "648" in lines[1]
    assert "broken/adapter_config.json" in err and "peft_type" in err
    found = json.loads(done(capsys, "list", "--json"))
    assert [one["folder"] for one in found] == ["broken", "one", "run/adapter"]
    assert found[0]["problem"] and found[1]["parameters"] == 648
    assert "nowhere: no such folder" in refused(capsys, here, "list", "nowhere")


def test_info(here, capsys):
    out = done(capsys, "info", "run")
    rows = [line.split() for line in out.splitlines() if line.startswith("transformer.h.")]
    assert [row[0] for row in rows] == [f"transformer.h.{i}.{kind}" for i in (0, 1, 10)
                                        for kind in ("attn.c_attn", "mlp.c_fc")]
    delta = read_adapter_folder(here / "run" / "adapter").factors["transformer.h.10.mlp.c_fc"].delta()
    values = np.linalg.svd(delta, compute_uv=False)[:3]
    shares = values / values.sum()
    expected = [3, 2, np.linalg.norm(delta), values[0], np.exp(-np.sum(shares * np.log(shares)))]
    np.testing.assert_allclose([float(cell) for cell in rows[-1][1:]], expected, rtol=1e-3)
    module = json.loads(done(capsys, "info", "run", "--json"))["modules"][-1]
    assert (module["module"], module["layer"], module["kind"]) == ("transformer.h.10.mlp.c_fc", 10, "mlp.c_fc")
    np.testing.assert_allclose([module["frobenius"], module["spectral"], module["effective_rank"]], expected[2:], 1e-5)


def test_heat_map(here, capsys):
    out = done(capsys, "info", "one", "--heat-map", "map.png", "--quantity", "effective_rank")
    assert out.splitlines()[-1] == "map.png"
    assert Image.open("map.png").size[0] >= 1000
    assert "--heat-map map.jpg: expected a name that ends in .png or .svg" in refused(capsys, here, "info", "one",
                                                                                     "--heat-map", "map.jpg")


def test_diff(here, capsys):
    assert "The settings are the same." in done(capsys, "diff", "one", "run")
    found = json.loads(done(capsys, "diff", "one", "run", "--json"))
    one, run = (read_adapter_folder(here / folder).factors["transformer.h.0.mlp.c_fc"].delta()
                for folder in ("one", "run/adapter"))
    module = next(m for m in found["modules"] if m["module"] == "transformer.h.0.mlp.c_fc")
    assert module["relative"] == pytest.approx(np.linalg.norm(run - one) / np.linalg.norm(one), rel=1e-5)
    assert module["cosine"] == pytest.approx(np.sum(run * one) / np.linalg.norm(one) / np.linalg.norm(run), abs=1e-6)
    make(here / "other", r=4, rank=4, target_modules=["c_fc", "c_attn"], revision="x")
    found = json.loads(done(capsys, "diff", "one", "other", "--json"))
    assert {s["name"]: (s["first"], s["second"]) for s in found["settings"]} == {
        "r": (3, 4), "lora_alpha": (6, 8), "revision": (None, "x")}
    make(here / "wide", width=9)
    assert "different bases" in refused(capsys, here, "diff", "one", "wide")


def test_combine(here, capsys):
    out = done(capsys, "combine", "one", "run", "--weights", "0.5", "-1", "--method", "cat", "--output", "both")
    assert out == "both: cat of 0.5 × one, -1 × run/adapter; rank 6, 1,296 parameters.\n"
    made, parts = read_adapter_folder(here / "both"), [read_adapter_folder(here / p) for p in ("one", "run/adapter")]
    assert {name: made.settings[name] for name in SETTINGS} == {**SETTINGS, "r": 6, "lora_alpha": 6}
    for name, pair in made.factors.items():
        np.testing.assert_allclose(pair.delta(), 0.5 * parts[0].factors[name].delta() - parts[1].factors[name].delta(),
                                   atol=1e-5)


@pytest.mark.parametrize("weights", [[], ["--weights", "3", "3"]])
def test_combine_to_the_mean(here, capsys, weights):
    out = done(capsys, "combine", "one", "run", *weights, "--normalize", "--method", "cat", "--output", "mean")
    assert out.startswith("mean: cat of 0.5 × one, 0.5 × run/adapter;")
    made, *parts = [read_adapter_folder(here / folder).factors for folder in ("mean", "one", "run/adapter")]
    for name, pair in made.items():
        np.testing.assert_allclose(pair.delta(), (parts[0][name].delta() + parts[1][name].delta()) / 2, atol=1e-5)


@pytest.mark.parametrize("records, expected", [
    (({}, {}), {}), (({"label_smoothing": 0.1}, {"label_smoothing": 0.1}), {"label_smoothing": 0.1}),
    (({"label_smoothing": 0.2}, {}), {"label_smoothing": 0.1}), (({"template": "{context} {question}"}, {}), None),
    ((None, {}), None), ((None, None), None)])
def test_combine_keeps_what_the_adapters_have_learnt_alike(here, capsys, records, expected):
    """Of label smoothing, the mean."""
    for folder, record in zip(("one", "run/adapter"), records):
        if record is not None:
            write_prompting(here / folder, replace(Prompting(), **{
                name: Template(value) if name == "template" else value for name, value in record.items()}))
    assert main(["adapter", "combine", "one", "run", "--output", "both"]) == 0
    assert read_prompting(here / "both") == (None if expected is None else replace(Prompting(), **expected))
    assert ("different templates" in capsys.readouterr().err) == (expected is None and records != (None, None))


def test_combine_notes_other_bases(here, capsys):
    make(here / "other", base_model_name_or_path="gpt2-xl")
    assert main(["adapter", "combine", "one", "other", "--output", "both"]) == 0
    assert "note: the adapters name different bases (gpt2, gpt2-xl)" in capsys.readouterr().err


def test_combined_names_are_whole_where_layers_were_chosen(here, capsys):
    make(here / "other", layers_to_transform=[0, 1, 10])
    done(capsys, "combine", "one", "other", "--output", "both")
    settings = json.loads((here / "both" / CONFIG_FILE).read_text())
    assert "transformer.h.10.mlp.c_fc" in settings["target_modules"] and settings["layers_to_transform"] is None


@pytest.mark.parametrize("arguments, expected", [
    (["combine", "one", "run"], "--output"),
    (["combine", "one", "run", "--output", "one"], "expected a new or empty folder"),
    (["combine", "one", "run", "--output", "x", "--weights", "1"], "--weights: expected 2, one per adapter"),
    (["combine", "one", "run", "--output", "x", "--weights", "1", "-1", "--normalize"],
     "--normalize: expected weights with a sum above 0, found 0"),
    (["combine", "one", "run", "--output", "x", "--weights", "1", "inf"], "expected a number, found 'inf'"),
    (["combine", "one", "run", "--output", "x", "--method", "ties"], "density: ties needs a number from 0 to 1"),
    (["combine", "one", "run", "--output", "x", "--method", "mean"], "invalid choice: 'mean'"),
    (["combine", "one", "dora", "--output", "x"], "dora: use_dora: True"),
    (["combine", "one", "pissa", "--output", "x"], "pissa: init_lora_weights: 'pissa'"),
    (["combine", "one", "pattern", "--output", "x"], "target_modules: expected names in all adapters or a regular"),
    (["combine", "one", "large", "--output", "x", "--method", "linear"], "linear needs equal ranks"),
    (["combine", "one", "nowhere", "--output", "x"], "nowhere: expected an adapter folder"),
    (["info", "empty"], "found neither in it"),
    (["convert", "adapter_model.bin", "x"], "adapter_model.bin: a file of loralib does not contain alpha"),
    (["convert", "adapter_model.bin", "x", "--alpha", "32"], "adapter_model.bin: expected PyTorch weights"),
    (["convert", "one.npz", "x", "--enable-lora", "q,v"], "--enable-lora needs a file of loralib"),
    (["convert", "adapter_model.bin", "x", "--enable-lora", "v,q"], "expected some of q,k,v in this order"),
    (["convert", "nowhere.npz", "x"], "nowhere.npz: cannot be read"),
    (["convert", "one", "x"], "TARGET x: expected a name that ends in .npz"),
    (["convert", "one", "x.npz", "--alpha", "3"], "--alpha needs a file as SOURCE"),
    (["convert", "one.npz", "x", "--alpha", "-1"], "--alpha: expected a number above 0"),
    (["convert", "one.npz", "one"], "TARGET one: expected a new or empty folder"),
    ([], "expected list, info, diff, combine or convert"),
    (["lst"], "invalid choice: 'lst'"),
    (["list", "--jsn"], "no such flag: --jsn; did you mean --json?\nRun `jittor-lora adapter list --help`"),
])
def test_mistakes(here, capsys, arguments, expected):
    make(here / "dora", use_dora=True)
    make(here / "pissa", init_lora_weights="pissa")
    make(here / "pattern", target_modules=".*c_(attn|fc)")
    make(here / "large", rank=4)
    (here / "empty").mkdir()
    (here / "adapter_model.bin").write_bytes(b"anything")
    np.savez(here / "one.npz", a=np.ones((2, 2)))
    assert expected in refused(capsys, here, *arguments)


def test_convert_there_and_back(here, capsys):
    out = done(capsys, "convert", "one", "one.npz")
    assert out == "one.npz: load it with LoRAConfig(r=3, alpha=6).\n"
    assert main(["adapter", "convert", "one.npz", "again"]) == 0
    assert "note: the file does not contain alpha; using 16" in capsys.readouterr().err
    done(capsys, "convert", "one.npz", "exact", "--alpha", "6", "--base", "my/gpt2")
    assert json.loads((here / "exact" / CONFIG_FILE).read_text())["base_model_name_or_path"] == "my/gpt2"
    found = json.loads(done(capsys, "diff", "one", "exact", "--json"))
    assert max(module["relative"] for module in found["modules"]) < 1e-6


def test_what_is_written_is_what_safetensors_reads(here, capsys):
    done(capsys, "combine", "one", "run", "--output", "both")
    arrays = load_file(here / "both" / WEIGHTS_FILE)
    assert arrays["base_model.model.transformer.h.0.mlp.c_fc.lora_A.weight"].shape == (3, 8)


@pytest.mark.parametrize("arguments", [["list", "."], ["info", "é"], ["diff", "é", "é"]])
def test_json_on_a_terminal_that_is_not_utf_8(tmp_path, arguments, monkeypatch):
    make(tmp_path / "é", base_model_name_or_path="水")
    monkeypatch.chdir(tmp_path)
    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, encoding="ascii"))
    assert main(["adapter", *arguments, "--json"]) == 0
    sys.stdout.flush()
    assert "é" in json.dumps(json.loads(stream.getvalue().decode("ascii")), ensure_ascii=False)
