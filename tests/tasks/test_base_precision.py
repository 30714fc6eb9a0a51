"""Training on a base quantised by `--base-precision`: as on the same numbers in float32, resumed exactly, on no
other."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

import model_files
import small_run
from jittor_lora.cli.main import main
from jittor_lora.errors import UserError
from jittor_lora.formats.base_record import base_of_adapter
from jittor_lora.formats.hugging_face import write_checkpoint
from jittor_lora.session import load
from jittor_lora.settings.run import RunConfig
from jittor_lora.tasks.merge import merge
from jittor_lora.tasks.plan import plan
from jittor_lora.tasks.train import train

LLAMA = {**model_files.LLAMA, "max_position_embeddings": 256, "eos_token_id": 299, "tie_word_embeddings": False}
BASES = {"q4": small_run.GPT2, "q8": LLAMA}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("jittor_lora.formats.quantised_base.cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "quantised"


@pytest.fixture(params=BASES)
def config(request, tmp_path):
    small_run.make_base(tmp_path / "base", BASES[request.param])
    small_run.make_squad(tmp_path / "train.json", 8)
    return RunConfig(base=str(tmp_path / "base"), data=str(tmp_path / "train.json"), output=str(tmp_path / "run"),
                     dev=str(tmp_path / "train.json"), max_dev=2, batch_size=4, max_steps=5, save_every=2, lora_r=2,
                     keep_checkpoints=9, learning_rate=0.01, precision="fp32", base_precision=request.param)


def results(folder):
    return [(folder / name).read_bytes() for name in ("adapter/adapter_model.safetensors", "train_loss.txt",
                                                      "val_loss.txt")]


def test_it_trains_as_on_the_decoded_base_and_resumes_exactly(config, tmp_path, capsys, cache):
    train(config)
    whole, run = results(tmp_path / "run"), tmp_path / "run"
    (file,) = cache.iterdir()
    made = file.stat()

    session = load(config.base, base_precision=config.base_precision)
    decoded = tmp_path / "decoded"
    shutil.copytree(config.base, decoded)
    write_checkpoint(decoded, replace(session.checkpoint, precision="auto", original=None), overwrite=True)
    train(RunConfig(**{**config.model_dump(), "base": str(decoded), "base_precision": "auto",
                       "output": str(tmp_path / "other")}))
    assert results(tmp_path / "other") == whole

    for path in (run / "checkpoints").glob("step-*5.safetensors"):
        path.unlink()
    train(config, resume=True)
    assert results(run) == whole and file.stat() == made

    for other in ("auto", "bf16"):
        with pytest.raises(UserError, match=f"base_precision.*: {config.base_precision} in the run, now {other}"):
            train(RunConfig(**{**config.model_dump(), "base_precision": other}), resume=True)


def test_an_adapter_knows_what_its_base_was_in(config, tmp_path, capsys):
    train(config)
    adapter = tmp_path / "run" / "adapter"
    record = json.loads((adapter / "base_model.json").read_text())
    assert record["precision"] == config.base_precision
    capsys.readouterr()
    load(base_of_adapter(adapter), adapter, base_precision=config.base_precision)
    assert "Note" not in capsys.readouterr().err
    load(base_of_adapter(adapter), adapter)
    note = capsys.readouterr().err
    assert f"trained with --base-precision {config.base_precision}" in note and note.count("\n") == 1
    merge(config.base, adapter, tmp_path / "merged", base_precision=config.base_precision)
    merged = load(str(tmp_path / "merged"))
    assert merged.model.config.family == BASES[config.base_precision]["model_type"]


def test_a_plan_counts_what_is_stored(config):
    found = plan(config)
    assert found.fits and found.memory_measured
    with pytest.raises(UserError, match=r"weights alone take .*--base-precision q4"):
        plan(RunConfig(**{**config.model_dump(), "base_precision": "auto"}), available=95_000)


def test_a_whole_model_is_not_trained_in_few_bits(config):
    with pytest.raises(UserError, match="base_precision.*full trains the weights"):
        RunConfig.resolve(None, {**config.model_dump(), "method": "full"}, {})


@pytest.mark.parametrize("verb", ["train", "quickstart", "generate", "evaluate", "compare", "serve", "merge", "export",
                                  "curve"])
def test_every_verb_that_loads_a_base_has_it(verb, capsys):
    assert main([verb, "--base-precision", "q5"]) == 2
    assert "auto, fp32, bf16, q8, q4" in capsys.readouterr().err.replace("'", "").replace(" or ", ", ")
