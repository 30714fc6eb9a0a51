"""Whole runs with every kind of trained array: resumed bit for bit, merged, and loaded again."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

import model_files
import small_run
import tiny
from jittor_lora.cli.main import main
from jittor_lora.errors import UserError
from jittor_lora.inference.generate import generate
from jittor_lora.lora.config import LoraConfig
from jittor_lora.lora.inject import adapters_of
from jittor_lora.session import load
from jittor_lora.settings.run import RunConfig
from jittor_lora.tasks.merge import merge
from jittor_lora.tasks.train import train

OPTIONS = {
    "dora": {"lora_use_dora": True, "lora_dropout": 0.2},
    "pissa": {"lora_init": "pissa_niter_4", "lora_dropout": 0.2, "lora_use_rslora": True},
    "olora-dora": {"lora_init": "olora", "lora_use_dora": True, "activation_checkpointing": True},
    "whole": {"modules_to_save": ["wte", "ln_f", "1.mlp"], "lora_bias": "all", "activation_checkpointing": True,
              "loraplus_lr_ratio": 8.0},
    "embedding": {"target_modules": ["wte", "c_attn"], "lora_layers_to_transform": None, "loraplus_lr_ratio": 4.0,
                  "loraplus_lr_embedding": 1e-3},
    "patterns": {"lora_rank_pattern": {"c_attn": 3}, "lora_alpha_pattern": {"c_attn": 5.0}, "exclude_modules": ["c_fc"],
                 "lora_layers_to_transform": [1]},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("options")
    small_run.make_base(folder / "base")
    small_run.make_squad(folder / "train.json", 6)
    return folder


def settings(folder, output, **changes):
    return RunConfig(**{"base": str(folder / "base"), "data": str(folder / "train.json"), "output": str(output),
                        "max_steps": 4, "save_every": 2, "keep_checkpoints": 3, "batch_size": 3, "lora_r": 2,
                        "learning_rate": 0.01, "precision": "fp32", "tensorboard": False, "seed": 3, **changes})


@pytest.mark.parametrize("option", OPTIONS)
def test_a_resumed_run_is_the_uninterrupted_one(made, tmp_path, option):
    config = settings(made, tmp_path / "run", **OPTIONS[option])
    train(config)
    whole = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    losses = (tmp_path / "run/train_loss.txt").read_text()
    (tmp_path / "run/checkpoints/step-00000004.safetensors").unlink()
    shutil.rmtree(tmp_path / "run/adapter")
    train(config, resume=True)
    again = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    assert (tmp_path / "run/train_loss.txt").read_text() == losses
    assert again.keys() == whole.keys()
    for name, array in whole.items():
        assert again[name].tobytes() == array.tobytes(), name
    assert json.loads((tmp_path / "run/summary.json").read_text())["trainable_parameters"] > 0
    assert merge(str(made / "base"), tmp_path / "run/adapter", tmp_path / "merged") < 1e-4


FAMILIES = {
    "mistral": {"sliding_window": None},
    "llama": {"attention_bias": True, "rope_scaling": tiny.LLAMA3_ROPE, "lora": {"lora_bias": "all"}},
    "qwen2": {"lora": {"lora_bias": "lora_only"}},
    "qwen3": {"lora": {"modules_to_save": ["q_norm", "0.self_attn.k_norm"], "lora_use_dora": True}},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_on_a_base_of_each_family(made, tmp_path, family):
    """Trained with the usual targets, merged, and the merged model gives the adapter's texts."""
    more = dict(FAMILIES[family])
    lora = more.pop("lora", {})
    small_run.make_base(tmp_path / "base", {**model_files.LLAMA, "model_type": family, "max_position_embeddings": 256,
                                            "tie_word_embeddings": False, "eos_token_id": 299, **more})
    train(settings(tmp_path, tmp_path / "run", data=str(made / "train.json"), **lora))
    trained = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    for part in ("q_proj.lora_B", "down_proj.lora_A", *lora.get("modules_to_save", ()), *(["bias"] if "lora_bias" in
                                                                                          lora else [])):
        assert any(part in name for name in trained), part
    assert merge(str(tmp_path / "base"), tmp_path / "run/adapter", tmp_path / "merged") < 1e-4
    adapted, merged = load(str(tmp_path / "base"), tmp_path / "run/adapter"), load(str(tmp_path / "merged"))
    prompt = tiny.tokens(20, vocab_size=299).tolist()
    texts = [generate(session.model, [], [prompt], 12) for session in (adapted, merged)]
    assert texts[0] == texts[1]
    with adapters_of(adapted.model).off():
        assert generate(adapted.model, [], [prompt], 12) != texts[0]


def test_an_active_adapter_is_trained(made, tmp_path):
    model = load(str(made / "base"))
    model.add_adapter(LoraConfig(r=3, target_modules=("c_attn",), use_dora=True), name="town")
    before = {name: p.numpy().copy() for name, p in model.adapter.parameters().items()}
    with pytest.raises(UserError, match=r"lora_r: 2 \(given\), but the adapter has 3"):
        train(settings(made, tmp_path / "run"), session=model)
    config = RunConfig(**{name: value for name, value in settings(made, tmp_path / "run").model_dump().items()
                          if name in ("base", "data", "output", "max_steps", "precision", "learning_rate", "epochs")})
    train(config, session=model)
    assert list(model.adapters) == ["town"]
    after = load(str(made / "base"), tmp_path / "run/adapter").adapter
    assert (after.config.r, after.config.use_dora) == (3, True)
    for name, array in before.items():
        assert not np.array_equal(after.parameters()[name].numpy(), array), name
    assert "lora_r: 3" in (tmp_path / "run/config.yaml").read_text()


def test_the_old_name_of_a_session_is_deprecated(made, tmp_path):
    session = load(str(made / "base"))
    with pytest.warns(DeprecationWarning, match="session="):
        train(settings(made, tmp_path / "run"), loaded=session)
    assert session.adapter.config.r == 2


def test_settings_that_do_not_fit_are_named(made, tmp_path):
    for changes, expected in (({"lora_init": "pissa", "lora_r": 100}, "at most rank"),
                              ({"modules_to_save": ["nothing"]}, "no module name ends in nothing"),
                              ({"exclude_modules": ["c_attn", "c_proj", "c_fc"]}, "nothing remains"),
                              ({"lora_layers_to_transform": [7]}, "nothing remains")):
        with pytest.raises(UserError, match=expected):
            train(settings(made, tmp_path / "run", **changes))


def test_biases_of_a_base_without_any(tmp_path):
    small_run.make_squad(tmp_path / "train.json", 2)
    llama = {**tiny.LLAMA, "vocab_size": 300, "max_position_embeddings": 256}
    small_run.make_base(tmp_path / "base", llama)
    with pytest.raises(UserError, match="have no biases"):
        train(settings(tmp_path, tmp_path / "run", lora_bias="all"))


def test_flags_and_how_a_resumed_run_reads_them(made, tmp_path, capsys):
    run = ["--output", str(tmp_path / "run"), "--precision", "fp32"]
    flags = ["--base", str(made / "base"), "--data", str(made / "train.json"), "--max-steps", "2",
             "--target-modules", "c_attn,c_proj,c_fc", "--exclude-modules", "attn.c_proj",
             "--lora-layers-to-transform", "0,1", "--lora-layers-pattern", "h", "--modules-to-save", "ln_f,h.0.ln_1",
             "--lora-rank-pattern", r"h\.1\.attn\.c_attn=3,c_fc=2", "--lora-alpha-pattern", "c_fc=5",
             "--lora-bias", "lora_only", "--lora-init", "pissa_niter_2", "--lora-dropout", "0", "--lora-use-rslora",
             "--lora-use-dora", "--loraplus-lr-ratio", "4"]
    assert main(["train", *run, *flags]) == 0
    told = capsys.readouterr().err
    for part in ("Adapter: rank 8; alpha 16; rsLoRA; DoRA; init pissa_niter_2; saved whole ln_f, h.0.ln_1; ",
                 "biases lora_only; without attn.c_proj; blocks 0, 1; ",
                 r"other ranks h\.1\.attn\.c_attn=3, c_fc=2; other alphas c_fc=5"):
        assert part in told
    config = json.loads((tmp_path / "run/adapter/adapter_config.json").read_text())
    assert config["rank_pattern"] == {r"h\.1\.attn\.c_attn": 6, "c_fc": 4}  # converted, therefore twice as large
    assert (config["r"], config["init_lora_weights"], config["modules_to_save"]) == (16, True, ["h.0.ln_1", "ln_f"])
    assert main(["train", *run, "--resume"]) == 0
    assert main(["train", *run, "--resume", "--lora-rank-pattern", "c_fc=2"]) == 2
    assert "lora_rank_pattern (--lora-rank-pattern)" in capsys.readouterr().err
