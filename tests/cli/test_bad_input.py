"""What users get wrong, one mistake at a time, through the command line.

Each ends in exit code 2 with one message that names the file or the setting and fits a screen, without a traceback, and
leaves nothing half-written.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import small_run
from jittor_lora.cli.main import main

SCREEN = 25  # lines
GONE = "/nowhere/base"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a base, another base, data, and a run."""
    folder = tmp_path_factory.mktemp("made")
    small_run.make_base(folder / "base")
    small_run.make_base(folder / "wide", {**small_run.GPT2, "n_embd": 48, "n_head": 3})
    small_run.make_squad(folder / "train.json", 4)
    assert main(["train", "--base", str(folder / "base"), "--data", str(folder / "train.json"), "--output",
                 str(folder / "run"), "--max-steps", "1"]) == 0
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A copy of it to spoil, as the current folder."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def refused(capsys, *arguments: str) -> str:
    """The message with which the command line refuses `arguments`; checks that it leaves no file."""
    capsys.readouterr()
    before = contents()
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err and len(err.splitlines()) < SCREEN
    assert err.count("jittor-lora: ") == 1
    assert contents() == before
    return err[err.index("jittor-lora: "):]


def contents() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(".").rglob("*") if path.is_file()}


def train(*more: str, base: str = "base", data: str = "train.json", output: str = "new") -> list[str]:
    return ["train", "--base", base, "--data", data, "--output", output, "--max-steps", "2", *more]


def generate(*more: str, base: str = "base", adapter: str = "run") -> list[str]:
    return ["generate", "--base", base, "--adapter", adapter, *(more or ("--prompt", "Town"))]


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments, words", [
    (train("--lora-r", "0"), ["lora_r (--lora-r)", "from 1 to 4096, found 0"]),
    (train("--lora-r", "1000000"), ["lora_r (--lora-r)", "to 4096", "1000000"]),
    (train("--learning-rate", "fast"), ["learning_rate (--learning-rate)", "a number", '"fast"']),
    (train("--target-modules", "c_attn,q_proj"), ["q_proj", "c_attn, c_proj, c_fc", "all-linear"]),
    (train("--target-modules", "lm_head"), ["lora_dropout", "lm_head"]),
    (train("--lora-rank-pattern", "c_attn=0", "--modules-to-save", "", "--lora-layers-to-transform", "x"),
     ["lora_rank_pattern", "modules_to_save", "lora_layers_to_transform (--lora-layers-to-transform)"]),
    (train("--lora-init", "pissa_niter_0", "--lora-alpha-pattern", "(=3"), ["pissa_niter_N", "regular expression"]),
    (train("--lora-layers-pattern", "h"), ["lora_layers_pattern", "no effect"]),
    (train("--loraplus-lr-embedding", "1e-5"), ["loraplus_lr_embedding", "no effect"]),
    (train("--modules-to-save", "nothing"), ["modules_to_save", "nothing", "ln_f"]),
    (train("--max-tokens", "10"), ["train.json", "10 tokens"]),
    (train("--eval-every", "2"), ["eval_every (--eval-every)", "dev"]),
    (train("--lora-r", "-1", "--batch-size", "x", "--schedule", "cos"),
     ["3 settings", "lora_r", "batch_size", "cosine"]),
    (train(output="run"), ["run already holds a run", "--resume", "--overwrite"]),
    (["train", "--output", "new", "--resume"], ["--data"]),
    (train("--config", "recipe"), ["no such file", "squad-gpt2"]),
    (generate("--prompt", ""), ["prompt (--prompt)", "not empty"]),
    (generate("--prompt", "word " * 400), ["The prompt has", "256"]),
    (generate("--prompt", "a\udc80"), ["prompt (--prompt)", "UTF-8"]),
    (generate("--prompt", "a", "--temperature", "-1"), ["temperature (--temperature)", "at least 0"]),
    (generate("--question", "Why?"), ["--context"]),
    (generate("--prompt", "a", "--base", GONE), [GONE, "no such folder"]),
    (["evaluate", "--base", "base", "--data", "train.json", "--output", "new", "--max-new-tokens", "256"],
     ["max_new_tokens", "256"]),
    (["merge", "--base", "base", "--adapter", "run", "--output", "base"], ["--output base", "empty folder"]),
    (["inspect", "--base", "base", "--data", "train.json", "--batch", "99"], ["--batch 99", "batches"]),
    (["plot", "base"], ["base", "train_loss.txt"]),
])
def test_settings(arguments, words, here, capsys):
    message = refused(capsys, *arguments)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("text, words", [
    ("lora_rank: 4\nlearnin_rate: 1e-3\n", ["lora_rank (r.yaml, line 1)", "lora_r?", "line 2", "learning_rate?"]),
    ("lora_r: [4\nseed: 3\n", ["r.yaml", "YAML", "line 2"]),
    ("- lora_r\n", ["r.yaml", "a list"]),
    ("seed: !!python/object/apply:os.getcwd []\n", ["r.yaml, line 1", "tags"]),
])
def test_recipes(text, words, here, capsys):
    Path("r.yaml").write_text(text)
    message = refused(capsys, *train("--config", "r.yaml"))
    assert all(word in message for word in words), message


# --- data ------------------------------------------------------------------------------------------------------------


def squad(question: dict, context: str = "Paris is in France.") -> bytes:
    question = {"id": "1", "question": "Where?", "answers": [{"text": "France", "answer_start": 12}], **question}
    return json.dumps({"data": [{"title": "t", "paragraphs": [{"context": context, "qas": [question]}]}]}).encode()


@pytest.mark.parametrize("content, words", [
    (None, ["no such file", "train.json?"]),
    (b"", ["the file is empty"]),
    (b'{"data": []}', ["no questions"]),
    (squad({}).replace(b"Paris", b"Z\xfcrich"), ["UTF-8", "0xfc"]),
    (squad({})[:90], ["cut off"]),
    (squad({"answers": [{"text": "Spain", "answer_start": 0}]}), ["qas[0].answers[0].text", "Spain"]),
    (squad({"answers": []}), ["answers"]),
    (b'{"prompt": "a", "completion": "b"}\n{"prompt": "c"}\n', ["line 2, completion"]),
    (b"prompt,count\na,b\n", ["line 2, completion", 'an object with "prompt", "count"']),
    (b"frage,antwort\na,b\n", ["not recognised. Its fields: frage, antwort.", "--columns OURS=THEIRS"]),
    (b"Once upon a time.\n", ["JSON Lines, CSV or TSV with a header", "Once upon"]),
])
def test_data(content, words, here, capsys):
    if content is not None:
        Path("trein.json").write_bytes(content)
    message = refused(capsys, *train(data="trein.json"))
    assert all(word in message for word in ["trein.json", *words]), message


# --- bases -----------------------------------------------------------------------------------------------------------


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def edit_json(path: Path, **changed: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def pickled(folder: Path, name: str, old: str) -> None:
    (folder / old).unlink()
    (folder / name).write_bytes(b"\x80\x02.")


def without(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


@pytest.mark.parametrize("spoil, words", [
    (lambda base: shutil.rmtree(base), ["base", "no such base model"]),
    (lambda base: without(base, "config.json"), ["base", "expected config.json"]),
    (lambda base: (base / "config.json").write_text("{model_type: gpt2}"), ["base/config.json", "JSON"]),
    (lambda base: edit_json(base / "config.json", model_type="bert"), ["base/config.json", "model_type", "bert"]),
    (lambda base: edit_json(base / "config.json", n_embd=64), ["base", "expected shape (300, 64)", "found (300, 32)",
                                                               "more"]),
    (lambda base: small_run.make_base(base, {**small_run.GPT2, "vocab_size": 200}),
     ["base/tokenizer.json", "300 tokens", "200"]),
    (lambda base: cut(base / "model.safetensors", 5000), ["base/model.safetensors", "truncated"]),
    (lambda base: (base / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
     ["base/model.safetensors", "git lfs pull"]),
    (lambda base: pickled(base, "pytorch_model.bin", "model.safetensors"), ["base", "pickle", "python -c"]),
    (lambda base: without(base, "tokenizer.json"), ["base", "expected tokenizer.json"]),
], ids=["missing", "no-config", "config", "architecture", "shapes", "vocabulary", "truncated", "lfs", "pickle",
        "tokenizer"])
def test_bases(spoil, words, here, capsys):
    spoil(Path("base"))
    message = refused(capsys, *train())
    assert all(word in message for word in words), message


def spoil_weights(path: Path) -> None:
    arrays = load_file(path)
    name = sorted(arrays)[0]
    save_file({**arrays, name: np.full_like(arrays[name], np.nan)}, path)


@pytest.mark.parametrize("arguments", [train(), generate()], ids=["train", "generate"])
def test_a_base_with_numbers_that_are_not_finite(arguments, here, capsys):
    spoil_weights(Path("base/model.safetensors"))
    capsys.readouterr()
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err and "damaged" in err.splitlines()[-1]
    assert "base: weights hold numbers that are not finite:\n  transformer.h.0.attn.c_attn.bias: 96 NaN of 96" in err


# --- adapters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoil, words", [
    (lambda adapter: shutil.rmtree(adapter), ["--adapter run", "adapter_config.json"]),
    (lambda adapter: edit_json(adapter / "adapter_config.json", peft_type="IA3"), ["adapter_config.json", "IA3"]),
    (lambda adapter: edit_json(adapter / "adapter_config.json", use_dora=True),
     ["c_attn.lora_magnitude_vector: missing"]),
    (lambda adapter: edit_json(adapter / "adapter_config.json", r=16), ["r = 16", "rank 8"]),
    (lambda adapter: pickled(adapter, "adapter_model.bin", "adapter_model.safetensors"),
     ["adapter_model.bin", "pickle"]),
    (lambda adapter: cut(adapter / "adapter_model.safetensors", 3000), ["adapter_model.safetensors", "truncated"]),
    (lambda adapter: spoil_weights(adapter / "adapter_model.safetensors"), ["adapter_model.safetensors", "not finite"]),
], ids=["missing", "kind", "dora", "rank", "pickle", "truncated", "nan"])
def test_adapters(spoil, words, here, capsys):
    spoil(Path("run/adapter"))
    message = refused(capsys, *generate())
    assert all(word in message for word in words), message


def test_an_adapter_of_another_base(here, capsys):
    message = refused(capsys, *generate(base="wide"))
    named = json.loads(Path("run/adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    assert "expected shape (8, 48), found (8, 32)" in message and message.endswith(f"adapter_config.json: {named}\n")


def test_the_base_that_an_adapter_names_is_gone(here, capsys):
    edit_json(Path("run/adapter/adapter_config.json"), base_model_name_or_path=GONE)
    assert GONE in refused(capsys, "generate", "--adapter", "run", "--prompt", "Town")


# --- places to write -------------------------------------------------------------------------------------------------

WRITING = {
    "train": train(output="{}"),
    "evaluate": ["evaluate", "--base", "base", "--data", "train.json", "--output", "{}"],
    "merge": ["merge", "--base", "base", "--adapter", "run", "--output", "{}"],
    "plot": ["plot", "run", "--output", "{}/"],
}


@pytest.mark.parametrize("verb", WRITING)
def test_output_below_a_file(verb, here, capsys):
    assert "train.json/new" in refused(capsys, *(a.format("train.json/new") for a in WRITING[verb]))


@pytest.mark.parametrize("verb", ["train", "evaluate", "merge"])
def test_output_that_is_a_file(verb, here, capsys):
    assert "--output train.json" in refused(capsys, *(a.format("train.json") for a in WRITING[verb]))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("verb", WRITING)
def test_output_that_may_not_be_made(verb, number, here, capsys, monkeypatch):
    make = os.mkdir

    def mkdir(path, *more, **options):
        if os.path.basename(path) in ("new", ".new.unfinished"):
            raise OSError(number, os.strerror(number), path)
        make(path, *more, **options)

    monkeypatch.setattr(os, "mkdir", mkdir)
    message = refused(capsys, *(a.format("new") for a in WRITING[verb]))
    assert "new" in message and os.strerror(number) in message


@pytest.mark.parametrize("verb", ["evaluate", "merge", "plot"])
def test_a_full_disk(verb, here, capsys, monkeypatch):
    def fsync(descriptor):
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    message = refused(capsys, *(a.format("new") for a in WRITING[verb]))
    assert "new/" in message and "No space left on device" in message and "Free space" in message


def test_a_disk_that_fills_up_in_training(here, capsys, monkeypatch):
    real = os.fsync

    def fsync(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").split("/")[-1].startswith(".step-"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert main(train("--save-every", "1")) == 2
    err = capsys.readouterr().err
    assert "new/checkpoints/step-00000001.safetensors: cannot be written (No space left" in err.splitlines()[-1]
    assert list(Path("new/checkpoints").iterdir()) == [] and not Path("new/adapter").exists()
    monkeypatch.undo()
    os.chdir(here)
    assert main([*train("--save-every", "1"), "--resume"]) == 0
