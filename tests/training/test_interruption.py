"""Runs of the command that are killed or interrupted and resumed; their results equal those of an uninterrupted run."""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

import small_run
from jittor_lora.cli.main import main
from jittor_lora.errors import UserError
from jittor_lora.formats.training_state import TrainingState, read_state, write_state
from jittor_lora.settings.run import RunConfig
from jittor_lora.system import runtime
from jittor_lora.tasks.train import train

STEPS, SAVE_EVERY = 100, 3
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
FILES = ("train_loss.txt", "val_loss.txt", "adapter/adapter_model.safetensors", "best/adapter_model.safetensors")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a base, training and validation data."""
    return small_run.make_files(tmp_path_factory.mktemp("files"), 14, 4)


def command(files: Path, output: Path) -> list[str]:
    return ["train", "--base", str(files / "base"), "--data", str(files / "train.json"), "--dev",
            str(files / "dev.json"), "--output", str(output), "--max-steps", str(STEPS), "--batch-size", "3",
            "--gradient-accumulation", "2", "--save-every", str(SAVE_EVERY), "--eval-every", "5",
            "--lora-dropout", "0.1", "--learning-rate", "0.01"]


@pytest.fixture(scope="module")
def whole(files):
    """The folder of the uninterrupted run."""
    status, out, err = small_run.run(*command(files, files / "whole"))
    assert (status, out) == (0, ""), err
    assert all((files / "whole" / name).is_file() for name in FILES)
    return files / "whole"


@pytest.fixture(scope="module")
def broken_off(files):
    """The folder of a run that was interrupted, with two checkpoints."""
    process = small_run.start(*command(files, files / "broken-off"))
    wait_for_steps(files / "broken-off", 2 * SAVE_EVERY + 1, process)
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    return files / "broken-off"


@pytest.fixture
def copy(broken_off, tmp_path):
    """A copy of that folder; its config.yaml names the original as output, which does not matter."""
    return Path(shutil.copytree(broken_off, tmp_path / "run"))


def steps_of(folder: Path) -> int:
    path = folder / "train_loss.txt"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_steps(folder: Path, count: int, process: subprocess.Popen) -> None:
    wait_for(lambda: steps_of(folder) >= count, process)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    """Wait until the condition holds, or the process has ended."""
    end = time.monotonic() + 120
    while not condition() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.002)


def assert_same(folder: Path, whole: Path) -> None:
    different = [name for name in FILES if (folder / name).read_bytes() != (whole / name).read_bytes()]
    assert not different


@pytest.mark.parametrize("seed, signals", [
    (0, SIGNALS[1:3]), *(pytest.param(seed, SIGNALS, marks=pytest.mark.slow) for seed in range(10))])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(seed, signals, files, whole, tmp_path):
    draw, folder = random.Random(seed), tmp_path / "run"
    for number in draw.sample(signals, len(signals)):
        process = small_run.start(*command(files, folder), "--resume")
        # Up to just after the next checkpoint: some kills lose steps, some none.
        wait_for_steps(folder, steps_of(folder) + draw.randrange(1, SAVE_EVERY + 2), process)
        time.sleep(draw.uniform(0, 0.03))  # some steps, but not all of them in four rounds
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=60)
        done = steps_of(folder)
        assert done < STEPS and out == "" and "Traceback" not in err
        if number == signal.SIGKILL:
            assert process.returncode == -number
        else:
            assert process.returncode == 128 + number, err
            assert err.endswith(f"Interrupted after step {done} and saved.\n"
                                "To continue from the last checkpoint, run the same command with --resume.\n")
            assert not (folder / "summary.json").exists()
            assert (folder / "checkpoints" / f"step-{done:08d}.safetensors").exists()
    status, out, err = small_run.run(*command(files, folder), "--resume")
    assert (status, out) == (0, ""), err
    assert "Resuming from" in err
    assert_same(folder, whole)


def test_waiting_for_the_lock_on_the_cache_is_not_a_failure(files, tmp_path):
    """Jittor locks its cache while it loads or compiles an operator; another process may do so at the same time."""
    lock_path = runtime.jt and importlib.import_module("jittor_utils.lock").lock_path
    # Others may hold the lock for a long time, and the run must not end before the signal.
    process = small_run.start(*command(files, tmp_path / "run"), "--max-steps", "1000000")
    try:
        wait_for(lambda: (tmp_path / "run" / "val_loss.txt").exists(), process)
        with open(lock_path, "w") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)
            time.sleep(0.2)
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.2)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "and saved" in err, err


def test_a_finished_run_stays_as_it_is(files, whole, tmp_path):
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    assert main([*command(files, folder), "--resume"]) == 0
    assert_same(folder, whole)
    before, after = (json.loads((run / "summary.json").read_text()) for run in (whole, folder))
    assert {**after, "seconds": 0, "peak_memory_mib": 0} == {**before, "seconds": 0, "peak_memory_mib": 0}


def with_cost(folder: Path, cost: object) -> None:
    """Make the newest checkpoint say what the run has cost; nothing if `cost` is None, as in earlier versions."""
    path = max((folder / "checkpoints").iterdir())
    state = read_state(path)
    values = {name: value for name, value in state.values.items() if name != "cost"}
    step = values["progress"]["step"]
    write_state(path.parent, step, TrainingState(state.arrays, values if cost is None else {**values, "cost": cost}), 9)


def test_the_summary_counts_the_parts_before_an_interruption(files, copy, whole):
    with_cost(copy, {"seconds": 5000.0, "peak_memory_mib": 10**7})
    assert main([*command(files, copy), "--resume"]) == 0
    summary = json.loads((copy / "summary.json").read_text())
    assert 5000 < summary["seconds"] < 5600 and summary["peak_memory_mib"] == 10**7
    cost = read_state(max((copy / "checkpoints").iterdir())).values["cost"]
    assert 5000 < cost["seconds"] <= summary["seconds"] and cost["peak_memory_mib"] == 10**7
    cost = read_state(max((whole / "checkpoints").iterdir())).values["cost"]
    summary = json.loads((whole / "summary.json").read_text())
    assert 0 < cost["seconds"] <= summary["seconds"] and 0 < cost["peak_memory_mib"] <= summary["peak_memory_mib"]


def test_a_checkpoint_without_its_cost_is_resumed(files, copy, capsys):
    with_cost(copy, None)
    assert main([*command(files, copy), "--resume"]) == 0
    assert "seconds and peak memory in the summary count from here" in capsys.readouterr().err
    assert 0 < json.loads((copy / "summary.json").read_text())["seconds"] < 600


@pytest.mark.parametrize("cost", [3, {}, {"seconds": 1.0}, {"seconds": -1, "peak_memory_mib": 1},
                                  {"seconds": 1e13, "peak_memory_mib": 1}, {"seconds": 1, "peak_memory_mib": "1"},
                                  {"seconds": True, "peak_memory_mib": 1}])
def test_a_malformed_cost_is_refused(files, copy, cost, capsys):
    with_cost(copy, cost)
    assert main([*command(files, copy), "--resume"]) == 2
    assert "cost: expected seconds and peak_memory_mib, numbers from 0" in capsys.readouterr().err


def test_another_setting_is_refused(files, copy, capsys):
    changed = ["--lora-r", "4", "--seed", "7", "--precision", "fp32", "--threads", "1"]
    assert main([*command(files, copy), "--resume", *changed]) == 2
    err = capsys.readouterr().err
    assert "precision (--precision): bf16 in the run, now fp32" in err and "--threads" not in err
    assert "lora_r (--lora-r): 8 in the run, now 4" in err and "seed (--seed): 42 in the run, now 7" in err


def test_another_precision_is_refused(files, copy, capsys):
    """As when a run in bf16 is copied to a processor without bf16; here the checkpoint claims another precision."""
    newest = max((copy / "checkpoints").iterdir())
    state = read_state(newest)
    step = int(newest.stem.split("-")[1])
    write_state(newest.parent, step, TrainingState(state.arrays, {**state.values, "precision": "fp16"}), 2)
    assert main([*command(files, copy), "--resume"]) == 2
    assert "the run was started in fp16, but here the base is computed in" in capsys.readouterr().err


@pytest.mark.parametrize("count", ["1", "3"])
def test_on_another_number_of_threads_it_ends_the_same(count, files, copy, whole):
    status, _, err = small_run.run(*command(files, copy), "--resume", "--threads", count)
    assert status == 0 and "Resuming from" in err, err
    assert_same(copy, whole)


@pytest.mark.parametrize("name, count, what", [("train", 14, "training"), ("dev", 4, "validation")])
def test_other_data_are_refused(name, count, what, files, copy, capsys):
    data, before = files / f"{name}.json", contents(copy)
    content = data.read_bytes()
    small_run.make_squad(data, count, first=1)
    try:
        assert main([*command(files, copy), "--resume"]) == 2
    finally:
        data.write_bytes(content)
    err = capsys.readouterr().err
    assert f"the {what} examples are not those this run was started with" in err and len(err.splitlines()) < 6
    assert contents(copy) == before


@pytest.mark.parametrize("name", ["transformer.ln_f.bias", "transformer.h.1.mlp.c_fc.weight"])
def test_another_base_is_refused(name, files, copy, capsys):
    """Even if only one matrix differs, as after merging an adapter."""
    weights = files / "base" / "model.safetensors"
    content, before = weights.read_bytes(), contents(copy)
    arrays = load_file(weights)
    arrays[name].flat[-1] += 1
    try:
        save_file(arrays, weights)
        assert main([*command(files, copy), "--resume"]) == 2
    finally:
        weights.write_bytes(content)
    assert "the base is not the one this run was started with" in capsys.readouterr().err
    assert contents(copy) == before


def test_everything_that_differs_from_the_checkpoint_is_reported_at_once(files, copy, capsys):
    """The checkpoint has the settings too: config.yaml may be gone, and the Python API does not read it."""
    (copy / "config.yaml").unlink()
    before = contents(copy)
    small_run.make_squad(files / "train.json", 14, first=1)
    try:
        assert main([*command(files, copy), "--resume", "--seed", "7", "--lora-alpha", "4", "--save-every", "1"]) == 2
    finally:
        small_run.make_squad(files / "train.json", 14)
    err = capsys.readouterr().err
    for part in ("step-0000", "seed (--seed): 42 in the run, now 7",
                 "lora_alpha (--lora-alpha): 16.0 in the run, now 4.0",
                 "the training examples are not those"):
        assert part in err
    assert "save_every" not in err and contents(copy) == before


def test_a_second_run_in_the_folder_is_refused(files, tmp_path, capsys):
    folder = tmp_path / "run"
    process = small_run.start(*command(files, folder))
    wait_for_steps(folder, 1, process)
    os.killpg(process.pid, signal.SIGSTOP)
    try:
        for more in (["--resume"], ["--overwrite"]):
            assert main([*command(files, folder), *more]) == 2
            assert f"{folder}: another process is working in this folder (process {process.pid} on" \
                in capsys.readouterr().err
        with pytest.raises(UserError, match="another process is working"):
            train(RunConfig(data="train.json", output=str(folder)))
    finally:
        os.killpg(process.pid, signal.SIGCONT)
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert main([*command(files, folder), "--resume", "--max-steps", "3"]) in (0, 2)
    assert "another process" not in capsys.readouterr().err


def test_a_folder_with_a_run_is_left_alone(files, copy):
    before = contents(copy)
    with pytest.raises(UserError, match="already holds a run"):
        train(RunConfig(base=str(files / "base"), data=str(files / "train.json"), output=str(copy)))
    assert contents(copy) == before


def test_a_damaged_checkpoint_is_skipped(files, whole, copy, capsys):
    older, newest = sorted((copy / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-100])
    assert main([*command(files, copy), "--resume"]) == 0
    err = capsys.readouterr().err
    assert f"Skipped: {newest}: " in err and f"Resuming from {older}." in err
    assert_same(copy, whole)


def test_all_checkpoints_damaged(files, copy, capsys):
    for path in (copy / "checkpoints").iterdir():
        path.write_bytes(b"\0" * 1000)
    before = contents(copy)
    assert main([*command(files, copy), "--resume"]) == 2
    err = capsys.readouterr().err
    assert "No checkpoint can be read" in err and err.count("step-0000") == 2 and len(err.splitlines()) < 6
    assert contents(copy) == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
