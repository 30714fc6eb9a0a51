"""`align` from flags to report, with a stand-in for the PyTorch side: a script that hands in our own record."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import pytest

import model_files
import small_run
import tiny
from jittor_lora.alignment import run as module
from jittor_lora.alignment import twin
from jittor_lora.cli.main import main
from jittor_lora.formats.hugging_face import read_checkpoint

COPY = "import shutil\nshutil.copytree('jittor', 'pytorch')\n"
ANOTHER_LOSS = COPY + """
from pathlib import Path
steps = Path("pytorch/steps.csv")
*before, last = steps.read_text().splitlines()
number, loss, *others = last.split(",")
steps.write_text("\\n".join([*before, ",".join([number, str(float(loss) + 0.5), *others])]) + "\\n")
"""
IDLE = "print('no record')"
FAILS = "print('one'); print('two'); raise SystemExit('three')"
SLEEPS = "import time\nprint('here', flush=True)\ntime.sleep(100)"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Base and data, scripts, and a Python that has all packages, as it claims."""
    folder = small_run.make_files(tmp_path_factory.mktemp("align"), 8, 3)
    for name, text in {"copy": COPY, "another": ANOTHER_LOSS, "idle": IDLE, "fails": FAILS, "sleeps": SLEEPS}.items():
        (folder / f"{name}.py").write_text(text)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nif [ "$1" = -c ]; then echo "[]"; else exec {sys.executable} "$@"; fi\n')
    python.chmod(0o755)
    return folder


def arguments(files, output, *more, script="copy"):
    with_script = ["--twin", files / f"{script}.py", "--python", files / "python"] if script else []
    return [str(argument) for argument in (
        "align", "--base", files / "base", "--data", files / "train.json", "--dev", files / "dev.json", "--output",
        output, "--steps", 3, "--batch-size", 4, "--lora-r", 2, "--eval-questions", 2, "--held-out", 2, *with_script,
        *more)]


def align(files, output, *more, script="copy"):
    return main(arguments(files, output, *more, script=script))


def without(command, flag):
    at = command.index(flag)
    del command[at : at + 2]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_inputs_record_and_report(files, tmp_path, capsys):
    out = tmp_path / "out"
    assert align(files, out) == 0
    screen = capsys.readouterr()
    assert "agree in all" in screen.out and str(out / "report.html") in screen.out
    assert "step 3/3: loss" in screen.err and "--- PyTorch" in screen.err

    settings = json.loads((out / "align.json").read_text())
    assert settings["base"] == os.path.realpath(files / "base") and settings["steps"] == 3
    steps, example = lines(out / "inputs/steps.jsonl"), lines(out / "inputs/first_example.jsonl")[0]
    assert len(steps) == 3 and example["tokens"] == steps[0][0]["tokens"]
    for one in (found for step in steps for found in step):
        scored = [weight > 0 for weight in one["weights"]]
        assert len(scored) == len(one["tokens"]) and scored == sorted(scored) and 1 < sum(scored) < len(scored)
    assert example["rows"] == [at - 1 for at, weight in enumerate(example["weights"]) if weight]
    assert [one["id"] for one in lines(out / "inputs/questions.jsonl")] == list(
        json.loads((out / "jittor/answers.json").read_text()))
    assert len(lines(out / "inputs/held_out.jsonl")) == 2
    for name in ("facts.json", "base.json", "steps.csv", "train.log", "first_step.safetensors", "held_out.safetensors",
                 "initial_adapter/adapter_config.json", "adapter/adapter_model.safetensors"):
        assert (out / "jittor" / name).is_file(), name
    assert (out / "inputs/adapter/adapter_model.safetensors").read_bytes() == \
        (out / "jittor/initial_adapter/adapter_model.safetensors").read_bytes()
    assert (out / "jittor/train.log").read_text().count("\n") == 3
    assert (out / "report.html").is_file() and (out / "alignment.zh-CN.md").is_file()


def test_the_same_command_resumes(files, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert align(files, out, script="fails") == 2
    message = capsys.readouterr().err
    assert "pytorch_twin.py ended with code 1. Its last lines:\n  one\n  two\n  three" in message
    assert (out / "jittor/facts.json").is_file() and not (out / "pytorch").exists()

    monkeypatch.setattr(module, "run_here", None)
    assert align(files, out, script="idle") == 2
    assert "expected it to leave the folder pytorch/" in capsys.readouterr().err
    assert align(files, out) == 0
    monkeypatch.setattr(twin, "run_there", None)
    assert align(files, out) == 0
    monkeypatch.undo()
    # Another script runs, and its side alone.
    monkeypatch.setattr(module, "run_here", None)
    assert align(files, out, script="another") == 1
    screen = capsys.readouterr().out
    assert "differ" in screen and "Losses" in screen
    assert align(files, out, "--tolerances", "losses=0.6", script="another") == 0


def test_relative_paths(files, tmp_path, monkeypatch):
    monkeypatch.chdir(files)
    out = os.path.relpath(tmp_path / "out")
    assert main(["align", "--base", "./base", "--data", "train.json", "--output", out, "--steps", "1", "--lora-r", "2",
                 "--twin", "copy.py", "--python", "./python"]) == 0


def test_other_settings_are_refused_unless_told_to_replace(files, tmp_path, capsys):
    out = tmp_path / "out"
    assert align(files, out) == 0
    assert align(files, out, "--learning-rate", "0.5", "--seed", "7") == 2
    message = capsys.readouterr().err
    assert "learning_rate: 0.0002 there, now 0.5" in message and "seed: 42 there, now 7" in message
    assert "--overwrite" in message
    assert align(files, out, "--learning-rate", "0.5", "--overwrite") == 0
    assert json.loads((out / "align.json").read_text())["learning_rate"] == 0.5

    strange = tmp_path / "strange"
    (strange / "jittor").mkdir(parents=True)
    assert align(files, strange) == 2
    assert "has jittor already, but no align.json" in capsys.readouterr().err
    assert list((strange / "jittor").iterdir()) == []


def test_a_python_without_the_packages(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(twin, "PACKAGES", ("json", "no_such_package"))
    assert align(files, tmp_path / "out", script=None) == 2
    message = capsys.readouterr().err
    assert "needs no_such_package" in message and 'pip install "jittor-lora[align]"' in message
    assert not (tmp_path / "out/jittor").exists()
    assert align(files, tmp_path / "out", "--python", "no-such-python", script=None) == 2
    assert "--python no-such-python: is not a Python that runs (No such file" in capsys.readouterr().err
    assert align(files, tmp_path / "out", "--python", "/bin/false", script=None) == 2
    assert "--python /bin/false: is not a Python that runs (code 1)" in capsys.readouterr().err


@pytest.mark.parametrize("content, expected", [(None, "No such file"), (b"x = '\xff'", "byte 0xff at position 5")])
def test_a_script_that_cannot_be_read(files, tmp_path, capsys, content, expected):
    if content is not None:
        (tmp_path / "script.py").write_bytes(content)
    code = main([*arguments(files, tmp_path / "out", script=None), "--twin", str(tmp_path / "script.py")])
    assert code == 2 and expected in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_both(files, tmp_path, number):
    out = tmp_path / "out"
    process = small_run.start(*arguments(files, out, script="sleeps"))
    for line in process.stderr:
        if line == "here\n":
            break
    started = time.monotonic()
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number and time.monotonic() - started < 30
    assert "run the same command again" in error
    assert (out / "jittor/facts.json").is_file() and not (out / "pytorch").exists()


@pytest.mark.parametrize("at", [1, 2])  # the second, and the last
def test_our_side_is_interrupted(files, tmp_path, monkeypatch, capsys, at):
    from jittor_lora.training.schedule import learning_rate

    def interrupted(step, **others):
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return learning_rate(step, **others)

    monkeypatch.setattr("jittor_lora.training.loop.learning_rate", interrupted)
    assert align(files, tmp_path / "out") == 143
    assert not (tmp_path / "out/jittor").exists() and not (tmp_path / "out/pytorch").exists()
    monkeypatch.undo()
    assert align(files, tmp_path / "out") == 0


LOGS = {"losses.txt": "4.1\n4.0\n3.9\n", "log.jsonl": '{"step": 1, "loss": 4.1}\n{"step": 2, "loss": 4.0}\n',
        "trainer_state.json": json.dumps({"log_history": [{"step": 1, "loss": 4.1}, {"step": 3, "loss": 3.9}]}),
        "log.csv": "step,loss\n1,4.1\n2,4.0\n"}


@pytest.mark.parametrize("name", LOGS)
def test_a_log_of_ones_own_is_laid_over(files, tmp_path, capsys, name):
    log, out = tmp_path / name, tmp_path / "out"
    log.write_text(LOGS[name])
    assert align(files, out, "--with", log, script=None) == 0
    assert name in capsys.readouterr().out
    assert (out / "report.html").is_file() and (out / "their.log").read_text() == LOGS[name]
    assert not (out / "pytorch").exists() and (out / "jittor/steps.csv").is_file()


def test_a_log_without_losses_is_refused_before_training(files, tmp_path, capsys):
    (tmp_path / "log.txt").write_text("nothing here\n")
    assert align(files, tmp_path / "out", "--with", tmp_path / "log.txt", script=None) == 2
    assert "no loss recognised" in capsys.readouterr().err
    assert not (tmp_path / "out/jittor").exists()
    assert main([*arguments(files, tmp_path / "out"), "--with", "log.txt"]) == 2
    assert "not allowed with" in capsys.readouterr().err


def test_without_validation_data(files, tmp_path, capsys):
    command = arguments(files, tmp_path / "out")
    without(command, "--dev")
    assert main(command) == 2
    message = capsys.readouterr().err
    assert "eval_questions" in message and "held_out" in message and "needs validation data" in message
    for flag in ("--eval-questions", "--held-out"):
        without(command, flag)
    assert main(command) == 0
    assert (tmp_path / "out/inputs/questions.jsonl").read_text() == ""
    checks = {check["check"]: check for check in json.loads((tmp_path / "out/summary.json").read_text())["checks"]}
    assert checks["held_out"]["passed"] is checks["answers"]["passed"] is None and checks["losses"]["passed"]


def test_with_dropout_only_the_first_step_is_compared(files, tmp_path, capsys):
    assert align(files, tmp_path / "out", "--lora-dropout", "0.5", script="another") == 0
    assert "dropout" in capsys.readouterr().out
    checks = {check["check"]: check for check in json.loads((tmp_path / "out/summary.json").read_text())["checks"]}
    assert checks["losses"]["passed"] is None and checks["gradients"]["passed"] and checks["first_update"]["passed"]


def test_a_gguf_base_is_written_as_a_folder(files, tmp_path):
    tensors = tiny.tensors(small_run.GPT2)
    expected = model_files.make_gguf(tmp_path / "base.gguf", small_run.GPT2, tensors, "Q8_0")
    command = arguments(files, tmp_path / "out")
    command[command.index("--base") + 1] = str(tmp_path / "base.gguf")
    assert main(command) == 0
    assert json.loads((tmp_path / "out/align.json").read_text())["base"] == "inputs/base"
    found = read_checkpoint(tmp_path / "out/inputs/base").tensors
    assert {name: (found[name] == array).all() for name, array in expected.items()} == dict.fromkeys(expected, True)


@pytest.mark.parametrize("flags, expected", [
    (["--save-every", "3"], "no such flag: --save-every"),
    (["--precision", "bf16"], "no such flag: --precision"),
    (["--qv-only"], "PEFT has no such setting"),
    (["--min-learning-rate-ratio", "0.1"], "transformers' schedules end at 0"),
    (["--tolerances", "losses=-1"], "expected numbers from 0, found losses=-1"),
    (["--tolerances", "losses"], "expected checks with numbers from 0"),
    (["--tolerances", "loses=1"], "no such check: loses; did you mean losses?"),
    (["--steps", "0"], "steps"),
])
def test_settings_that_make_no_sense(files, tmp_path, capsys, flags, expected):
    assert align(files, tmp_path / "out", *flags) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out/jittor").exists()


def test_a_recipe_may_hold_more_than_is_used(files, tmp_path):
    (tmp_path / "recipe.yaml").write_text("epochs: 3\nsave_every: 10\nprecision: bf16\nlora_r: 3\neval_every: 5\n")
    assert align(files, tmp_path / "out", "--config", tmp_path / "recipe.yaml") == 0
    assert json.loads((tmp_path / "out/jittor/facts.json").read_text())["settings"]["precision"] == "float32"
