"""Train, evaluate, merge, generate and plot on a tiny base, each verb on what the one before left."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

import small_run
import tiny
from jittor_lora.cli.main import main
from jittor_lora.errors import UserError
from jittor_lora.model import causal_lm
from jittor_lora.training.optimizer import AdamW


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with base, data and a run that has learnt something."""
    folder = small_run.make_files(tmp_path_factory.mktemp("way"), 12, 3)
    (folder / "rows.jsonl").write_text("".join(
        json.dumps({"prompt": f"{n} and one:", "completion": f" {n + 1}"}) + "\n" for n in range(12)))
    assert main(["train", "--base", str(folder / "base"), "--data", str(folder / "train.json"), "--dev",
                 str(folder / "dev.json"), "--output", str(folder / "run"), "--max-steps", "20", "--eval-every", "10",
                 "--eval-questions", "3", "--learning-rate", "0.02", "--seed", "1"]) == 0
    return folder


def evaluate(folder, *arguments: str) -> dict[str, str]:
    """Predictions of an evaluation on the validation data."""
    assert main(["evaluate", "--data", str(folder / "dev.json"), "--output", str(folder / "scores"), *arguments]) == 0
    return json.loads((folder / "scores" / "predictions.json").read_text())


def test_evaluate_merge_and_generate_agree(run, capsys):
    base, merged = ["--base", str(run / "base")], ["--base", str(run / "merged")]
    adapter = ["--adapter", str(run / "run")]
    predictions = evaluate(run, *base, *adapter, "--with-base")
    assert json.loads((run / "scores/base/predictions.json").read_text()) != predictions
    metrics = json.loads((run / "scores/metrics.json").read_text())
    assert metrics["count"] == 6 and {"exact_match", "f1", "exact_match_interval", "f1_interval"} <= metrics.keys()
    assert main(["merge", *base, *adapter, "--output", str(run / "merged")]) == 0
    assert evaluate(run, *merged) == predictions

    data = json.loads((run / "dev.json").read_text())["data"]
    paragraph = data[0]["paragraphs"][0]
    asked = [*zip(paragraph["qas"], [paragraph["context"]] * 2)]
    for question, context in asked:
        for model in ([*base, *adapter], adapter, merged):
            capsys.readouterr()
            assert main(["generate", *model, "--context", context, "--question", question["question"],
                         "--max-new-tokens", "32"]) == 0
            assert capsys.readouterr().out.strip() == predictions[question["id"]]

    file = run / "asked.jsonl"
    file.write_text("".join(json.dumps({"context": context, "question": question["question"]}) + "\n"
                            for question, context in asked))
    assert main(["generate", *adapter, "--file", str(file), "--max-new-tokens", "32"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["continuation"].strip() for line in lines] == [predictions[question["id"]] for question, _ in asked]


def test_plot(run, capsys):
    assert main(["plot", str(run / "run")]) == 0
    assert sorted(path.name for path in (run / "run" / "plots").iterdir()) == ["loss.png", "loss.svg"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("arguments", [
    ["--data", "rows.jsonl", "--schedule", "cosine", "--lora-init", "kaiming", "--target-modules", "all-linear"],
    ["--data", "train.json", "--schedule", "constant", "--prompt-loss-weight", "0.3", "--qv-only"],
    ["--data", "train.json", "--no-share-prefixes", "--max-tokens-per-stream", "100", "--gradient-accumulation", "2"],
    ["--data", "train.json", "--dev", "dev.json", "--eval-every", "1", "--patience", "1", "--learning-rate", "1"],
])
def test_ways_to_train(arguments, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(run)
    output = str(tmp_path / "new")
    assert main(["train", "--base", "base", "--output", output, "--max-steps", "4", *arguments]) == 0
    losses = [float(line) for line in (tmp_path / "new/train_loss.txt").read_text().splitlines()]
    assert len(losses) == 4 or json.loads((tmp_path / "new/summary.json").read_text())["ended"] == "early stop"
    capsys.readouterr()
    assert main(["generate", "--adapter", output, "--prompt", "Town", "--max-new-tokens", "3"]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("\n") and err in ("", "This machine has no fast bf16 products: computing in fp32.\n")


def test_activation_checkpointing(run, tmp_path, monkeypatch):
    blocks, recomputed = [], causal_lm.recomputed
    monkeypatch.setattr(causal_lm, "recomputed", lambda *arguments: blocks.append(1) or recomputed(*arguments))
    assert main(["train", "--base", str(run / "base"), "--data", str(run / "train.json"), "--output",
                 str(tmp_path / "new"), "--max-steps", "2", "--activation-checkpointing"]) == 0
    assert len(blocks) == 2 * tiny.VARIANTS["gpt2"]["n_layer"]


@pytest.mark.parametrize("verb, arguments", [
    ("train", ["--data", "train.json", "--output", "threads-train"]),
    ("evaluate", ["--data", "dev.json", "--output", "threads-evaluate"]),
    ("generate", ["--prompt", "Town"]),
    ("quickstart", ["--data", "train.json", "--dev", "dev.json", "--output", "threads-quick"]),
])
def test_threads_are_set(verb, arguments, run, monkeypatch, capsys):
    def set_threads(count):
        raise UserError(f"{count} threads")

    monkeypatch.chdir(run)
    for module in ("jittor_lora.system.runtime", "jittor_lora.tasks.train", "jittor_lora.tasks.quickstart"):
        monkeypatch.setattr(f"{module}.set_threads", set_threads)
    assert main([verb, "--base", "base", "--threads", "3", *arguments]) == 2
    assert "3 threads" in capsys.readouterr().err


@pytest.mark.parametrize("verb, seen, arguments", [
    ("evaluate", "train.json: ", ["--data", "train.json", "--output", "again", "--batch-size", "1",
                                  "--max-new-tokens", "150"]),
    ("generate", "Prompt: ", ["--interactive"]),
    ("quickstart", "1/4  ", ["--data", "train.json", "--dev", "dev.json", "--output", "quick", "--max-steps", "5"]),
])
def test_ctrl_c(verb, seen, arguments, run, monkeypatch):
    monkeypatch.chdir(run)
    process = small_run.start(verb, "--base", "base", *arguments, stdin=verb == "generate")
    err = ""
    while not err.endswith(seen):
        character = process.stderr.read(1)
        assert character, err
        err += character
    time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, rest = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "", rest
    goes_on = "To continue, run the same command again.\n" if verb == "quickstart" else ""
    assert rest.endswith("\nInterrupted.\n" + goes_on) and "Traceback" not in rest


def interrupted_at(step: int, inner):
    """An optimiser's step, with Ctrl-C during that one."""
    def stepped(self, *arguments):
        inner(self, *arguments)
        if self.steps == step:
            signal.raise_signal(signal.SIGINT)

    return stepped


@pytest.mark.parametrize("step", [3, 5])  # one, and the last
def test_quickstart_ends_at_ctrl_c_and_continues(step, run, tmp_path, monkeypatch, capsys):
    def quickstart(name: str) -> tuple[int, str]:
        code = main(["quickstart", "--base", str(run / "base"), "--data", str(run / "train.json"), "--dev",
                     str(run / "dev.json"), "--max-steps", "5", "--output", str(tmp_path / name)])
        return code, capsys.readouterr().err

    assert quickstart("whole")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(AdamW, "step", interrupted_at(step, AdamW.step))
        code, err = quickstart("parts")
    assert code == 130 and "3/4" not in err
    assert err.endswith("\nInterrupted.\nTo continue, run the same command again.\n")
    assert quickstart("parts")[0] == 0 and not (tmp_path / "parts-2").exists()
    one, other = (json.loads((tmp_path / name / "evaluation/adapter/predictions.json").read_text())
                  for name in ("whole", "parts"))
    assert one == other
    assert quickstart("parts")[0] == 0 and (tmp_path / "parts-2/plots/scores.svg").is_file()


def test_a_quickstart_interrupted_after_its_training_continues(run, tmp_path, monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    arguments = ["quickstart", "--base", str(run / "base"), "--data", str(run / "train.json"), "--dev",
                 str(run / "dev.json"), "--max-steps", "5", "--output", str(tmp_path / "quick")]
    with monkeypatch.context() as patch:
        patch.setattr("jittor_lora.tasks.quickstart.score_chart", interrupted)
        assert main(arguments) == 130
    assert main(arguments) == 0 and "resuming the interrupted run" in capsys.readouterr().err
    assert not (tmp_path / "quick-2").exists() and (tmp_path / "quick/plots/scores.png").is_file()


def test_a_curve_ends_at_ctrl_c_in_the_last_step_of_a_run(run, tmp_path, monkeypatch, capsys):
    arguments = ["curve", "--base", str(run / "base"), "--data", str(run / "train.json"), "--dev",
                 str(run / "dev.json"), "--over", "rank", "--points", "2,4", "--max-steps", "3", "--output",
                 str(tmp_path / "curve")]
    with monkeypatch.context() as patch:
        patch.setattr(AdamW, "step", interrupted_at(3, AdamW.step))
        assert main(arguments) == 130
    assert len(list((tmp_path / "curve").rglob("summary.json"))) == 1
    assert main(arguments) == 0
    assert len(list((tmp_path / "curve").rglob("summary.json"))) == 2
