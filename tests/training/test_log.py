from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from jittor_lora.errors import UserError
from jittor_lora.training import progress_bar
from jittor_lora.training.log import RunLog

LOGS = ("train_loss.txt", "val_loss.txt", "metrics.jsonl")


def loss_of(step):
    return 3.0 / (step + 0.1) ** 0.5


def log_steps(log, first, last, validate_every=3):
    """The calls of a run from optimiser step `first` to `last`."""
    for step in range(first, last + 1):
        log.step(step, loss=loss_of(step), learning_rate=1e-3 / step, grad_norm=0.5, tokens=100 + step, questions=8,
                 seconds=0.25)
        if step % validate_every == 0:
            log.validation(step, loss=loss_of(step) + 0.1, f1=10.0 * step)


def contents(folder):
    return [(folder / name).read_bytes() for name in LOGS]


@pytest.fixture
def uninterrupted(tmp_path):
    folder = tmp_path / "uninterrupted"
    with RunLog(folder, 10, quiet=True) as log:
        log.validation(0, loss=4.0)
        log_steps(log, 1, 10)
    return folder


def test_one_number_per_line_that_reads_back_as_the_same_float(uninterrupted):
    assert [float(line) for line in (uninterrupted / "train_loss.txt").read_text().splitlines()] == [
        loss_of(step) for step in range(1, 11)]
    assert [float(line) for line in (uninterrupted / "val_loss.txt").read_text().splitlines()] == [
        4.0, *(loss_of(step) + 0.1 for step in (3, 6, 9))]


def test_metrics_rows(uninterrupted):
    rows = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    assert rows[:2] == [{"step": 0, "val_loss": 4.0},
                        {"step": 1, "train_loss": loss_of(1), "learning_rate": 1e-3, "grad_norm": 0.5, "tokens": 101,
                         "questions": 8, "seconds": 0.25}]
    assert rows[4] == {"step": 3, "val_loss": loss_of(3) + 0.1, "f1": 30.0}


def test_numpy_numbers_and_numbers_that_are_not_finite(tmp_path):
    with RunLog(tmp_path, quiet=True) as log:
        log.step(1, loss=np.float32(0.1), learning_rate=np.float64(1e-3), grad_norm=float("inf"), tokens=np.int64(3),
                 questions=1, seconds=np.float32(0.5))
        log.step(2, loss=float("nan"), learning_rate=1e-3, grad_norm=1e300, tokens=3, questions=1, seconds=0.0)
    assert (tmp_path / "train_loss.txt").read_text() == f"{float(np.float32(0.1))!r}\nnan\n"
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (rows[0]["grad_norm"], rows[1]["train_loss"]) == (None, None)


def test_every_step_survives_a_kill(tmp_path):
    code = ("import sys, time\nfrom jittor_lora.training.log import RunLog\nlog = RunLog(sys.argv[1], quiet=True)\n"
            "for step in range(1, 6):\n"
            "    log.step(step, loss=step / 7, learning_rate=0, grad_norm=0, tokens=1, questions=1, seconds=1)\n"
            "print('done', flush=True)\ntime.sleep(60)")
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert (tmp_path / "train_loss.txt").read_text() == "".join(f"{step / 7!r}\n" for step in range(1, 6))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_cut_back_and_resumed_logs_equal_the_uninterrupted_ones(tmp_path_factory, data):
    """Killed after any step, with any part of the last lines written, and resumed from any earlier checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    with RunLog(folder, 10, quiet=True) as log:
        log.validation(0, loss=4.0)
        log_steps(log, 1, 10)
    whole = contents(folder)
    checkpoint = data.draw(st.integers(0, 9))
    for name, content in zip(LOGS, whole):
        if name == "val_loss.txt":
            needed = 1 + checkpoint // 3
        else:
            needed = checkpoint + (1 + checkpoint // 3 if name == "metrics.jsonl" else 0)
        shortest = sum(len(line) for line in content.splitlines(keepends=True)[:needed])
        (folder / name).write_bytes(content[:data.draw(st.integers(shortest, len(content)))])
    with RunLog(folder, 10, quiet=True) as log:
        log.truncate_to(checkpoint)
        if checkpoint == 0:
            log.validation(0, loss=4.0)
        log_steps(log, checkpoint + 1, 10)
    assert contents(folder) == whole


def test_logs_shorter_than_the_checkpoint_are_refused_untouched(uninterrupted):
    (uninterrupted / "train_loss.txt").write_text("1.0\n2.0\n3.")
    (uninterrupted / "val_loss.txt").unlink()
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError) as caught:
        RunLog(uninterrupted, quiet=True).truncate_to(9)
    assert "train_loss.txt: 2 whole lines, expected at least 9" in str(caught.value)
    assert "val_loss.txt: 0 whole lines, expected at least 4" in str(caught.value)
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before


def test_damaged_metrics_are_refused_with_the_line(uninterrupted):
    path = uninterrupted / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "oops\n", *lines[2:]]))
    with pytest.raises(UserError, match="metrics.jsonl, line 2: expected a JSON object with a step, found b'oops'"):
        RunLog(uninterrupted, quiet=True).truncate_to(5)


@pytest.mark.parametrize("call", [lambda log: log_steps(log, 1, 1), lambda log: log_steps(log, 12, 12)])
def test_a_run_is_never_mixed_with_another(uninterrupted, call):
    before = contents(uninterrupted)
    with pytest.raises(UserError, match="holds 10 steps"):
        call(RunLog(uninterrupted, quiet=True))
    assert contents(uninterrupted) == before


def test_summary_config_and_text_log(tmp_path):
    with RunLog(tmp_path / "run", quiet=True) as log:
        log.system({"python": "3.11", "cpu": "a \u6838"})
        log.config({"base": "gpt2", "rank": 8, "targets": ["c_attn"], "title": "\u4e2d"})
        log.message("note \u4e2d")
        log_steps(log, 1, 3)
        log.summary({"best": float("nan"), "nested": [1.5, float("inf")], "steps": 3})
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary == {"best": None, "nested": [1.5, None], "steps": 3}
    config = (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")
    assert list(yaml.safe_load(config)) == ["base", "rank", "targets", "title"]
    assert "\u4e2d" in config
    text = (tmp_path / "run" / "run.log").read_text(encoding="utf-8")
    assert "  cpu     a \u6838\n" in text
    assert "note \u4e2d\n" in text
    assert f"step 3: validation loss {loss_of(3) + 0.1:.4f}, f1 30\n" in text


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be read \\(Not a directory\\)"):
        log_steps(RunLog(tmp_path / "file", quiet=True), 1, 1)
    with pytest.raises(UserError, match="run.log: cannot be written"):
        RunLog(tmp_path / "file", quiet=True).message("x")


def test_full_disk(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    log = RunLog(tmp_path, quiet=True)
    with pytest.raises(UserError, match="metrics.jsonl: cannot be written \\(No space left on device\\)"):
        log.step(1, loss=1, learning_rate=1, grad_norm=1, tokens=1, questions=1, seconds=1)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_come_rarely_and_at_the_end(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now[0])
    screen = io.StringIO()
    with RunLog(tmp_path, 100, stream=screen) as log:
        for step in range(1, 101):
            now[0] += 2.0
            log.step(step, loss=1.5, learning_rate=1e-3, grad_norm=1.0, tokens=1000, questions=10, seconds=2.0)
    lines = screen.getvalue().splitlines()
    assert [line.split(":")[0] for line in lines] == [f"step {step}/100" for step in (1, 16, 31, 46, 61, 76, 91, 100)]
    assert "loss 1.5, 500 tokens/s, 5.0 questions/s, peak " in lines[3]
    assert [line[-len("xx:xx left"):] for line in lines[1:4]] == ["02:48 left", "02:18 left", "01:48 left"]
    assert "left" not in lines[0]  # the first step gives no estimate
    assert "\r" not in screen.getvalue()


def test_bar_on_a_terminal(tmp_path):
    screen = Terminal()
    with RunLog(tmp_path, 3, stream=screen) as log:
        log_steps(log, 1, 3)
    assert "100%" in screen.getvalue()
    assert "3/3" in screen.getvalue()
    assert " q/s" in screen.getvalue()
    assert "step 3: validation loss" in screen.getvalue()


def test_resumed_progress_counts_from_the_checkpoint(tmp_path, monkeypatch):
    with RunLog(tmp_path, 100, quiet=True) as log:
        log_steps(log, 1, 90)
    now = [0.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now[0])
    screen = io.StringIO()
    with RunLog(tmp_path, 100, stream=screen) as log:
        log.truncate_to(90)
        for step, seconds in ((91, 200.0), (92, 20.0), (93, 20.0)):
            now[0] += seconds
            log.step(step, loss=1, learning_rate=1, grad_norm=1, tokens=1, questions=1, seconds=seconds)
    lines = screen.getvalue().splitlines()
    assert [line.endswith("left") for line in lines] == [False, True]
    assert lines[-1].endswith("02:20 left")


def test_the_time_left_is_estimated_by_tokens(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now[0])
    screen = Terminal()
    with RunLog(tmp_path, 103, stream=screen, tokens_per_step=1000.0) as log:
        for step, (tokens, seconds) in enumerate([(1000, 60.0), (500, 1.0), (2500, 5.0)], 1):  # 2 ms per token
            now[0] += seconds
            log.step(step, loss=1.5, learning_rate=1e-3, grad_norm=1.0, tokens=tokens, questions=8, seconds=seconds)
    shown = screen.getvalue().split("\r")
    assert "left" not in "".join(line for line in shown if "2/103" in line or "1/103" in line)
    assert ", 03:20 left, loss 1.5," in shown[-1]


def test_quiet_shows_nothing(tmp_path, capsys):
    with RunLog(tmp_path, 3, quiet=True) as log:
        log_steps(log, 1, 3)
        log.message("x")
    assert capsys.readouterr() == ("", "")


def test_logging_costs_little(tmp_path):
    started = time.perf_counter()
    with RunLog(tmp_path, 500, quiet=True) as log:
        log_steps(log, 1, 500)
    assert (time.perf_counter() - started) / 500 < 0.01
