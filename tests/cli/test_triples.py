"""WebNLG's and DART's whole way, by their recipes, on a small base."""

from __future__ import annotations

import json

import pytest

import small_run
from jittor_lora.cli.main import main
from jittor_lora.data.sources import load_data
from triple_files import dart_towns, webnlg_towns

FILES = {"webnlg": webnlg_towns, "dart": dart_towns}
SAID = {"webnlg": "WebNLG, 18 completions of 9 prompts, 6 seen, 3 unseen", "dart": "DART, 18 completions of 9 prompts"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(small_run.make_base(tmp_path_factory.mktemp("triples") / "base"))


@pytest.mark.parametrize("name", FILES)
def test_the_whole_way_by_the_recipe(name, base, tmp_path, capsys):
    data, run, out = tmp_path / "towns.json", tmp_path / "run", tmp_path / "out"
    data.write_text(json.dumps(FILES[name](9)), encoding="utf-8")
    assert main(["inspect", "--base", base, "--data", str(data)]) == 0
    assert f"towns.json: {SAID[name]}\n" in capsys.readouterr().out
    assert main(["train", "--config", f"{name}-gpt2", "--base", base, "--data", str(data), "--output", str(run),
                 "--max-steps", "2", "--warmup-steps", "1"]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train_loss" in row] == [1, 2]
    settings = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (4, 32, 0.1 if name == "webnlg" else 0)
    assert main(["evaluate", "--adapter", str(run), "--data", str(data), "--output", str(out), "--max-new-tokens", "8",
                 "--beams", "10", "--length-penalty", "0.8", "--no-repeat-ngram", "4"]) == 0
    assert json.loads((out / "predictions.json").read_text()).keys() == load_data(str(data)).references().keys()
