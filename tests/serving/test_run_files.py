"""Run folders read for the page: real ones, growing ones, damaged and hostile ones."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import small_run
from jittor_lora.serving.views import run_curves
from jittor_lora.serving.views.run_curves import MOST_POINTS, CurveReader
from jittor_lora.serving.views.run_files import RunFiles
from jittor_lora.serving.views.run_find import MOST_ENTRIES
from jittor_lora.serving.views.thinned import Thinned
from jittor_lora.system.locks import locked
from run_folders import loss, make_run, make_scores

HOLD = ("import sys\nfrom jittor_lora.system.locks import locked\n"
        "with locked(sys.argv[1]):\n    print('in', flush=True)\n    sys.stdin.read()")
ODD = b'{"step": 1, "train_loss": 2.0}\n'
LOOK = ("import sys, time\nfrom pathlib import Path\nfrom jittor_lora.system.locks import is_locked\n"
        "print('in', flush=True)\nwhile True:\n    is_locked(Path(sys.argv[1]))\n    time.sleep(0.001)")
in_a_folder = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def holder():
    started = []

    def hold(folder):
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "in\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()


def states(root):
    return {run.id: run.state for run in RunFiles(root).listing().data}


def codes(notes):
    return [(note.code, note.count) for note in notes]


# --- where a run stands ----------------------------------------------------------------------------------------------


def test_a_finished_run(tmp_path):
    make_run(tmp_path / "runs" / "a", 25, ended="early stop")
    run, = RunFiles(tmp_path / "runs").listing().data
    assert (run.id, run.state, run.ended, run.steps, run.total_steps) == ("a", "finished", "early stop", 25, 25)
    assert (run.train_loss, run.val_loss, run.base, run.method) == (loss(25), loss(20) + 0.25, "tiny-base", "lora")
    assert run.seconds_left is None and run.tokens_per_second == 200 and abs(run.changed - time.time()) < 60


def test_a_run_trains_while_a_process_holds_its_lock(tmp_path, holder):
    folder = make_run(tmp_path / "a", 30, total=1050, ended=None)
    files = RunFiles(tmp_path)
    assert files.details("a").run.state == "interrupted"
    process = holder(folder)
    run = files.details("a").run
    assert (run.state, run.total_steps, run.seconds_left) == ("training", 1050, 510)
    process.kill()
    process.wait()
    assert (folder / ".lock").exists()
    run = files.details("a").run
    assert (run.state, run.seconds_left) == ("interrupted", None)


def test_a_finished_run_that_goes_on(tmp_path, holder):
    folder = make_run(tmp_path / "a", 30)
    process = holder(folder)
    assert states(tmp_path) == {"a": "training"}
    process.kill()
    process.wait()
    make_run(folder, 40, total=50, ended=None, first=31)
    assert states(tmp_path) == {"a": "interrupted"}  # the summary is of step 30


def test_looking_at_a_run_does_not_keep_another_from_its_lock(tmp_path):
    make_run(tmp_path / "a", 3, ended=None)
    (tmp_path / "a" / ".lock").touch()  # of a killed process
    looking = subprocess.Popen([sys.executable, "-c", LOOK, str(tmp_path / "a")],
                               stdout=subprocess.PIPE, text=True)
    try:
        assert looking.stdout.readline() == "in\n"
        for _ in range(50):
            with locked(tmp_path / "a"):
                pass
            (tmp_path / "a" / ".lock").touch()
    finally:
        looking.kill()
        looking.communicate()


@pytest.mark.slow
def test_a_real_training_is_followed(tmp_path):
    small_run.make_files(tmp_path, 40, 4)
    folder, files = tmp_path / "runs" / "it", RunFiles(tmp_path / "runs")
    process = small_run.start("train", "--base", tmp_path / "base", "--data", tmp_path / "train.json", "--dev",
                              tmp_path / "dev.json", "--output", folder, "--epochs", 2000, "--eval-every", 20)
    seen = []

    def enough():
        return len({run.steps for run in seen}) > 3 and seen[-1].val_loss is not None

    try:
        end = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < end and not enough():
            found = files.details("it") if folder.is_dir() else None
            if found and found.run.steps:
                seen.append(found.run)
                assert found.run.state == "training" and found.run.total_steps > 1000 and found.run.seconds_left > 0
                assert found.curves.training.step == list(range(1, found.curves.training.step[-1] + 1))
            time.sleep(0.02)
        assert enough()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    found = files.details("it")
    assert found.run.state == "interrupted" and found.run.notes == found.curves.notes == []
    assert found.curves.training.step[-1] == found.run.steps and found.settings["eval_every"] == "20"


def test_logs_of_another_program(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train_loss.txt").write_text("3.0\n2.0\n1.5\n")
    (tmp_path / "other" / "val_loss.txt").write_bytes("验证 loss 2.5\n".encode("gbk"))
    found = RunFiles(tmp_path).details("other")
    assert (found.run.state, found.run.train_loss, found.curves.training.loss) == ("unknown", 1.5, [3.0, 2.0, 1.5])
    assert found.curves.training.step == [1, 2, 3] and found.curves.validation.loss == [2.5]
    assert "losses" in dict(codes(found.curves.notes))


def test_what_does_not_change_is_not_read_again(tmp_path, monkeypatch):
    make_run(tmp_path / "a", 5)
    files = RunFiles(tmp_path)
    before = files.details("a")
    monkeypatch.setattr("jittor_lora.serving.views.run_state.recipe.read", lambda _: pytest.fail("read again"))
    assert files.details("a").run == before.run
    make_scores(tmp_path / "a", "adapter", {"q": "x"}, ["x"], 50.0)
    assert files.details("a").run.revision != before.run.revision


# --- finding ---------------------------------------------------------------------------------------------------------


def test_names_are_paths_below_the_folder_with_the_running_ones_first(tmp_path, holder):
    for name in ("b", "deep/er/c", "a"):
        make_run(tmp_path / name, 1)
    os.utime(tmp_path / "a" / "metrics.jsonl", (1e9, 1e9))
    holder(tmp_path / "b")
    make_run(tmp_path / ".hidden", 1)
    make_run(tmp_path / "a" / "evaluation" / "inside", 1)
    names = [run.id for run in RunFiles(tmp_path).listing().data]
    assert names[0] == "b" and sorted(names) == ["a", "b", "deep/er/c"]


def test_the_folder_itself_may_be_a_run(tmp_path):
    make_run(tmp_path / "own", 1)
    make_run(tmp_path / "own" / "other", 1)
    assert states(tmp_path / "own") == {"own": "finished", "other": "finished"}


def test_links_are_not_followed(tmp_path):
    make_run(tmp_path / "outside" / "a", 5)
    make_run(tmp_path / "runs" / "b", 5)
    secret = tmp_path / "secret.json"
    secret.write_text('{"ended": "SECRET", "base": "SECRET"}')
    (tmp_path / "runs" / "away").symlink_to(tmp_path / "outside")
    for name in ("summary.json", "config.yaml", "metrics.jsonl"):
        (tmp_path / "runs" / "b" / name).unlink()
        (tmp_path / "runs" / "b" / name).symlink_to(secret)
    (tmp_path / "runs" / "b" / "evaluation").symlink_to(tmp_path / "outside")
    (tmp_path / "runs" / "b" / ".lock").symlink_to(secret)
    files = RunFiles(tmp_path / "runs")
    assert ("links", 1) in codes(files.listing().notes)
    found = files.details("b")
    assert "SECRET" not in str(found) and found.curves is None and found.run.state == "unknown"
    assert {note.file for note in found.run.notes + found.results.notes + found.notes} >= {
        "summary.json", "config.yaml", "metrics.jsonl", "evaluation"}


def test_a_folder_replaced_by_a_link_is_no_run(tmp_path):
    make_run(tmp_path / "runs" / "a", 5)
    files = RunFiles(tmp_path / "runs")
    assert files.details("a") is not None
    shutil.move(tmp_path / "runs" / "a", tmp_path / "elsewhere")
    (tmp_path / "runs" / "a").symlink_to(tmp_path / "elsewhere")
    assert files.details("a") is None


@pytest.mark.parametrize("name", [b"a\nb", b"\xff\xfe", b"<img src=x onerror=alert(1)>", "运行".encode()])
def test_hostile_names(tmp_path, name):
    folder = make_run(tmp_path / os.fsdecode(name), 3)
    files = RunFiles(tmp_path)
    run, = files.listing().data
    run.id.encode("utf-8")
    assert files.details(run.id).curves.training.step == [1, 2, 3] and folder.is_dir()


def test_an_unreadable_and_an_endless_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("jittor_lora.serving.views.run_find.MOST_FOLDERS", 5)
    for number in range(9):
        (tmp_path / str(number)).mkdir()
    assert ("folders", 5) in codes(RunFiles(tmp_path).listing().notes)
    assert RunFiles(tmp_path / "none").listing().notes[0].code == "unreadable"
    assert RunFiles(None).listing().folder is None and MOST_ENTRIES >= 1000


# --- curves ----------------------------------------------------------------------------------------------------------


def test_only_new_points_while_a_log_grows(tmp_path):
    make_run(tmp_path / "a", 12, total=20, ended=None)
    files = RunFiles(tmp_path)
    first = files.details("a").curves
    assert first.training.step == list(range(1, 13)) and first.complete == 12 and first.validation.step == [10]
    make_run(tmp_path / "a", 20, total=20, first=13)
    more = files.details("a", first.complete, first.version)
    assert more.settings is None and more.results is None
    assert (more.curves.since, more.curves.training.step) == (12, list(range(13, 21)))
    assert more.curves.training.loss == [loss(step) for step in range(13, 21)]
    assert files.details("a", 12, "another").curves.training.step == list(range(1, 21))


def test_a_half_written_line_is_read_once_it_is_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    reader, content = CurveReader(), b"".join(json.dumps({"step": s, "train_loss": s / 2}).encode() + b"\n"
                                              for s in range(1, 6))
    for cut in range(len(content) + 1):
        path.write_bytes(b"")
        with open(path, "r+b") as stream:  # the same file: it grows
            stream.write(content[:cut])
        curves = reader.metrics(path)
        assert curves.training.step == list(range(1, content[:cut].count(b"\n") + 1)) and not curves.notes


def test_a_resumed_run_starts_its_points_anew(tmp_path):
    folder = make_run(tmp_path / "a", 30, total=60, ended=None)
    files = RunFiles(tmp_path)
    before = files.details("a").curves
    from jittor_lora.training.log import RunLog
    with RunLog(folder, 60, quiet=True) as log:
        log.truncate_to(20)
        log.step(21, loss=9.0, learning_rate=1e-3, grad_norm=1, tokens=1, questions=1, seconds=1)
    after = files.details("a", before.complete, before.version).curves
    assert after.since == 0 and after.training.step == list(range(1, 22)) and after.training.loss[-1] == 9


def test_a_file_rewritten_in_place_is_noticed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "train_loss": 1.0}\n')
    reader = CurveReader()
    assert reader.metrics(path).training.loss == [1.0]
    with open(path, "r+b") as stream:
        stream.write(b'{"step": 1, "train_loss": 5.0}\n{"step": 2, "train_loss": 6.0}\n')
    assert reader.metrics(path).training.loss == [5.0, 6.0]


def test_a_long_run_has_few_points_that_are_means(tmp_path):
    steps = 20_000
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {s}, "train_loss": {s}, "tokens": 10, "seconds": 2}}\n'
                            for s in range(1, steps + 1)))
    curves = CurveReader().metrics(path)
    assert curves.stride == 16 and len(curves.training.step) == 1250
    assert curves.training.step[:2] == [16, 32] and curves.training.loss[:2] == [8.5, 24.5]
    assert curves.training.step[-1] == steps and set(curves.training.tokens_per_second) == {5.0}


def test_a_file_beyond_what_is_read_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(run_curves, "AT_A_TIME", 1000)
    make_run(tmp_path / "a", 100)
    path, reader = tmp_path / "a" / "metrics.jsonl", CurveReader()

    def read_on():
        calls = [reader.metrics(path)]
        while calls[-1].bytes_left:
            calls.append(reader.metrics(path))
        return calls

    calls = read_on()
    assert calls[-1].training.step == list(range(1, 101)) and len(calls) >= path.stat().st_size // 1000
    path.write_bytes(b"x" * 5500 + b"\n" + ODD)
    curves = read_on()[-1]
    assert codes(curves.notes) == [("lines", 1)] and curves.training.loss == [2.0]


def test_lines_that_no_run_writes_are_counted(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\xff\xfe\n[1]\n{}\n{\"step\": true}\n{\"step\": 1e3}\n" + b"[" * 100_000 + b"\n" + ODD + ODD
                     + b'{"step": 2, "train_loss": null, "grad_norm": 1e999}\n'
                     + b'{"step": 3, "train_loss": "3", "learning_rate": [1]}\n'
                     + b'{"step": ' + b"9" * 5000 + b"}\n")
    curves = CurveReader().metrics(path)
    assert codes(curves.notes) == [("lines", 7), ("backward", 1), ("not_finite", 2)]
    assert curves.training.step == [1, 2, 3] and curves.training.loss == [2.0, None, None]


@in_a_folder
@given(content=st.one_of(st.binary(max_size=300), st.lists(st.sampled_from([
    ODD, b'{"step": 2, "val_loss": NaN, "f1": 1e308}\n', b'{"step": 2, "val_loss"', b"\x00\n", b"\r\n", b"null\n",
    b'{"step": 5, "train_loss": 1e308, "tokens": 1, "seconds": 1e-320}\n', "{\"步\": 1}\n".encode("gbk"),
    b'{"step": 1000000000000, "train_loss": -1}\n', b'{"step": 7, "train_loss": 1' + b"0" * 99 + b"}\n",
    b'{"\\ud800": "\\ud800", "step": 8, "train_loss": 0}\n']), max_size=12).map(b"".join)),
    cut=st.integers(0, 300), name=st.sampled_from(["metrics.jsonl", "summary.json", "config.yaml", "run.log",
                                                   "train_loss.txt", "val_loss.txt", "evaluation/a/metrics.json",
                                                   "evaluation/a/questions.jsonl"]))
def test_no_content_of_any_file_stops_the_reader(tmp_path, content, cut, name):
    from dataclasses import asdict
    shutil.rmtree(tmp_path / "a", ignore_errors=True)
    make_run(tmp_path / "a", 3)
    make_scores(tmp_path / "a", "a", {"q": "x"}, ["x"], 50.0)
    (tmp_path / "a" / name).write_bytes(content[:cut])
    files = RunFiles(tmp_path)
    for found in (files.listing(), files.details("a"), files.details("a", 1, "x")):
        json.dumps(asdict(found), allow_nan=False, ensure_ascii=False).encode("utf-8")


@given(steps=st.lists(st.integers(0, 10**12), max_size=300, unique=True), most=st.integers(2, 20),
       rounds=st.integers(1, 5))
@example(steps=[0, 1, 2], most=2, rounds=1)
@settings(deadline=None, max_examples=80)
def test_points_fetched_bit_by_bit_are_those_fetched_at_once(steps, most, rounds):
    thinned, kept, stride, complete = Thinned(["x"], most), [], 1, 0
    steps = sorted(steps)
    for part in range(rounds):
        for step in steps[part * len(steps) // rounds:(part + 1) * len(steps) // rounds]:
            assert thinned.add(step, {"x": 1.0})
        if thinned.stride != stride:
            kept, complete, stride = [], -1, thinned.stride
        kept = [step for step in kept if step <= complete] + thinned.after(complete if kept else -1)[0]
        complete = thinned.complete
    whole, means = thinned.after(-1)
    assert kept == whole and len(whole) <= most and all(value == 1 for value in means["x"])


def test_means_are_of_finite_values():
    thinned = Thinned(["x"], 2)
    for step, value in enumerate([1.0, None, 3.0, float("nan"), None, 5.0, None, None], 1):
        thinned.add(step, {"x": value})
    assert thinned.after(0) == ([4, 8], {"x": [2.0, 5.0]}) and thinned.not_finite == 5
    assert MOST_POINTS >= 1000


# --- results ---------------------------------------------------------------------------------------------------------


def test_scores_and_answers_side_by_side(tmp_path):
    make_run(tmp_path / "a", 3)
    make_scores(tmp_path / "a", "adapter", {"572658daf1498d1400e8dcad": "cells", "q2": "no"}, ["cells", "cells"], 50.0)
    make_scores(tmp_path / "a", "base", {"572658daf1498d1400e8dcad": "jelly"}, ["cells"], 0.0)
    results = RunFiles(tmp_path).details("a").results
    assert [(s.name, s.exact_match, s.exact_match_interval) for s in results.scores] == [
        ("base", 0.0, (0.0, 100.0)), ("adapter", 50.0, (0.0, 100.0))]
    first, second = results.answers
    assert first.question == "What are colloblasts?" and first.references == ["cells"]
    assert first.answers == {"base": "jelly", "adapter": "cells"} and second.answers == {"adapter": "no"}
    assert second.question is None


def test_large_files_are_refused_with_a_note(tmp_path):
    make_run(tmp_path / "a", 3)
    make_scores(tmp_path / "a", "adapter", {"q": "x" * 10_000}, ["x"], 50.0)
    (tmp_path / "a" / "evaluation" / "adapter" / "metrics.json").write_bytes(b" " * (2 << 20))
    (tmp_path / "a" / "summary.json").write_bytes(b" " * (2 << 20))
    (tmp_path / "a" / "config.yaml").write_bytes(b"#" * (2 << 20))
    found = RunFiles(tmp_path).details("a")
    assert {note.file for note in found.run.notes + found.results.notes} == {
        "summary.json", "config.yaml", "evaluation/adapter/metrics.json"}
    assert len(found.results.answers[0].answers["adapter"]) == 2000
    assert not any(str(tmp_path) in note.text for note in found.run.notes + found.results.notes)


def test_a_pipe_in_place_of_a_file_blocks_nothing(tmp_path):
    make_run(tmp_path / "a", 3)
    for name in ("metrics.jsonl", "summary.json", ".lock"):
        (tmp_path / "a" / name).unlink(missing_ok=True)
        os.mkfifo(tmp_path / "a" / name)
    found = RunFiles(tmp_path).details("a")
    assert found.curves is None and "expected a regular file" in found.notes[0].text
