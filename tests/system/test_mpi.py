"""The command under mpirun: several ranks compute what one does, and all end when one fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import mpi
import small_run
from needs import needs_bf16, needs_mpi

pytestmark = needs_mpi

SAVED = 10  # step of the checkpoint to resume from
LOGS = ("train_loss.txt", "val_loss.txt")
SAME = (*LOGS, "adapter/adapter_model.safetensors", "best/adapter_model.safetensors")

FAILING = """
import os, signal, sys
from jittor_lora.cli.main import main
from jittor_lora.errors import UserError
from jittor_lora.training import gradients

def end(number):
    os.kill(os.getpid(), number)

def fail(how):
    raise {"bug": ValueError("in the middle"), "user": UserError("no room on this host"),
           "memory": MemoryError()}[how]

def failing(*arguments, **more):
    failing.calls += 1
    if os.environ["OMPI_COMM_WORLD_RANK"] == "1" and failing.calls == 5:
        how = os.environ["HOW"]
        end(getattr(signal, how)) if how.startswith("SIG") else fail(how)
    return inner(*arguments, **more)

failing.calls, inner, gradients.stream_loss = 0, gradients.stream_loss, failing
sys.exit(main())
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return small_run.make_files(tmp_path_factory.mktemp("files"), 14, 4)


def command(files: Path, output: Path, *more: object) -> list[object]:
    return ["train", "--base", files / "base", "--data", files / "train.json", "--dev", files / "dev.json", "--output",
            output, "--max-steps", 20, "--batch-size", 6, "--gradient-accumulation", 2, "--save-every", SAVED,
            "--eval-every", 5, "--eval-questions", 8, "--lora-dropout", 0.1, "--learning-rate", 0.01,
            "--max-tokens-per-stream", 400, "--precision", "fp32", *more]


@pytest.fixture(scope="module")
def alone(files):
    status, out, err = small_run.run(*command(files, files / "alone"))
    assert (status, out) == (0, ""), err
    return files / "alone"


@pytest.fixture(scope="module")
def two(files):
    """The folder of a run on two ranks, with its messages."""
    status, out, err = mpi.run(2, *command(files, files / "two"))
    assert (status, out) == (0, ""), err
    (files / "two" / "said").write_text(err)
    return files / "two"


@pytest.fixture
def broken_off(two, tmp_path):
    """A copy of that folder, as if the run had ended after its first checkpoint."""
    folder = Path(shutil.copytree(two, tmp_path / "run"))
    (folder / "checkpoints" / "step-00000020.safetensors").unlink()
    return folder


def assert_close(folder: Path, other: Path, rtol: float = 1e-5) -> None:
    for name in LOGS:
        np.testing.assert_allclose(np.loadtxt(folder / name), np.loadtxt(other / name), rtol=rtol)
    if rtol > 1e-5:
        return
    for row, expected in zip(*(map(json.loads, (at / "metrics.jsonl").read_text().splitlines())
                               for at in (folder, other))):
        assert all(row.get(name) == expected.get(name) for name in ("step", "tokens", "questions", "exact_match", "f1"))
    arrays, expected = (load_file(at / "adapter" / "adapter_model.safetensors") for at in (folder, other))
    for name in expected:
        np.testing.assert_allclose(arrays[name], expected[name], rtol=1e-4, atol=2e-5, err_msg=name)


def test_two_ranks_give_the_losses_of_one(alone, two):
    assert_close(two, alone)
    said = (two / "said").read_text()
    assert said.count("Done after step 20") == 1 and "Ranks: 2 on " in said
    assert len((two / "train_loss.txt").read_text().splitlines()) == 20


@needs_bf16
def test_two_ranks_in_bf16(files, tmp_path):
    """Sums in another order are rounded differently, which a learning rate as high as this one magnifies."""
    bf16 = ["--precision", "bf16", "--max-steps", 10]
    assert small_run.run(*command(files, tmp_path / "one", *bf16))[0] == 0
    assert mpi.run(2, *command(files, tmp_path / "two", *bf16))[0] == 0
    assert_close(tmp_path / "two", tmp_path / "one", 2e-3)


@pytest.mark.slow
def test_three_ranks_give_the_losses_of_one(files, alone, tmp_path):
    assert mpi.run(3, *command(files, tmp_path / "three"))[0] == 0
    assert_close(tmp_path / "three", alone)


def test_resuming_with_as_many_ranks_gives_the_same_bits(files, two, broken_off):
    status, _, err = mpi.run(2, *command(files, broken_off, "--resume"))
    assert status == 0 and f"Resuming from {broken_off}/checkpoints/step-00000010" in err, err
    assert not [name for name in SAME if (broken_off / name).read_bytes() != (two / name).read_bytes()]


def test_resuming_with_another_number_of_ranks_gives_the_same_losses(files, alone, broken_off):
    status, _, err = small_run.run(*command(files, broken_off, "--resume"))
    assert status == 0 and "Resuming from" in err, err
    assert_close(broken_off, alone)


@pytest.mark.slow
def test_full_fine_tuning(files, tmp_path):
    for ranks in (1, 2):
        assert mpi.run(ranks, *(a for a in command(files, tmp_path / str(ranks), "--method", "full")
                                if a not in ("--lora-dropout", 0.1)))[0] == 0
    for name in LOGS:
        np.testing.assert_allclose(*(np.loadtxt(tmp_path / run / name) for run in "12"), rtol=1e-5)


@pytest.mark.slow
def test_ctrl_c_stops_all_ranks_after_the_same_step_and_saves(files, tmp_path):
    process = mpi.start(2, *command(files, tmp_path / "run", "--max-steps", 5000),
                        options=("--mca", "odls_base_sigkill_timeout", "20"))
    wait_for_a_step(tmp_path / "run", process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    done = len((tmp_path / "run" / "train_loss.txt").read_text().splitlines())
    assert err.endswith(f"Interrupted after step {done} and saved.\n"
                        "To continue from the last checkpoint, run the same command with --resume.\n"), err
    assert (tmp_path / "run" / "checkpoints" / f"step-{done:08d}.safetensors").exists()


SLOW = pytest.mark.slow


@pytest.mark.parametrize("how, message", [
    ("bug", "ValueError: in the middle"),
    ("SIGKILL", "exited on signal 9"),
    pytest.param("user", "jittor-lora: no room on this host", marks=SLOW),
    pytest.param("memory", "out of memory", marks=SLOW),
    pytest.param("SIGSEGV", "Fatal Python error: Segmentation fault", marks=SLOW),
    pytest.param("SIGTERM", "Interrupted after step", marks=SLOW),  # as from a scheduler, to only one rank
])
def test_a_rank_that_fails_in_a_step_ends_the_job(how, message, files, tmp_path):
    program, folder = tmp_path / "failing.py", tmp_path / "run"
    program.write_text(FAILING)
    process = mpi.start(2, *command(files, folder), "--max-steps", 5000, program=program, HOW=how)
    wait_for_a_step(folder, process)
    failed = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - failed < 10
    assert process.returncode != 0 and out == "" and err.count(message) == 1, err


@pytest.mark.parametrize("wrong, message", [
    (["--lora-r", "x"], "lora_r (--lora-r): expected a whole number"),  # before Jittor is imported
    pytest.param(["--data", "none.json"], "none.json: no such file", marks=SLOW),
])
def test_a_mistake_is_reported_once(wrong, message, files, tmp_path):
    started = time.monotonic()
    status, out, err = mpi.run(2, *command(files, tmp_path / "run", *wrong))
    assert status == 2 and out == "" and err.count(message) == 1 and "Traceback" not in err
    assert time.monotonic() - started < 30


def test_commands_that_cannot_run_on_ranks_are_refused():
    status, _, err = mpi.run(2, "plot", "run")
    assert status == 2 and err.count("only train and evaluate run under mpirun; run plot without it") == 1


PROGRAM = """
import numpy as np
from jittor_lora.system.ranks import join
ranks = join()
{body}
"""


def test_communication_between_ranks(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(body="""
from jittor_lora.system.runtime import jt
here = ranks.rank
assert (ranks.size, ranks.first) == (3, here == 0)
assert ranks.all_reduce(np.full((2, 3), here, np.float32)).tolist() == [[3.0] * 3] * 2
assert ranks.total(here, 2.0**-60) == [3.0, 3 * 2.0**-60]
assert ranks.all_gather({"rank": here, "text": "é" * here}) == [{"rank": r, "text": "é" * r} for r in range(3)]
assert ranks.broadcast([here]) == [0]
assert ranks.share(range(7)) == list(range(7))[here::3]
assert ranks.first_given(here if here == 2 else None) == 2 and ranks.first_given(None) is None
bits = np.array([-0.0, np.nan, 1e-40, here], np.float32)
assert ranks.broadcast_arrays({"a": bits})["a"].tobytes() == np.array([-0.0, np.nan, 1e-40, 0], np.float32).tobytes()
loss, gradients = ranks.all_reduce_gradients(0.5, {"a": jt.ones((2, 2)) * here, "b": jt.ones((3,))})
assert loss == 1.5 and (gradients["a"].numpy() == 3).all() and gradients["b"].numpy().tolist() == [3.0] * 3
ranks.check_same({"version": 1})
ranks.barrier()
if here == 0:
    print("all right")
"""))
    assert mpi.run(3, program=program) == (0, "all right\n", "")


@pytest.mark.slow
def test_ranks_with_different_data_are_refused(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(body="ranks.check_same({'data': ranks.rank, 'base': 'same'})"))
    status, _, err = mpi.run(2, program=program)
    assert status == 1 and "data: 0 on rank 0, 1 on rank 1" in err and "base" not in err.split("\n  ")[1]


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--extractive", "--perplexity"), ("--extractive", "--aim", "f1")])
def test_evaluation_on_three_ranks_equals_that_on_one(more, files, two, tmp_path):
    arguments = ["evaluate", "--base", files / "base", "--adapter", two / "adapter", "--data", files / "dev.json",
                 *more]
    assert small_run.run(*arguments, "--output", tmp_path / "one")[0] == 0
    status, out, err = mpi.run(3, *arguments, "--output", tmp_path / "three")
    assert (status, out) == (0, "") and err.count("Predictions and scores") == 1, err
    for path in (tmp_path / "one").iterdir():
        if path.name != "metrics.json":
            assert (tmp_path / "three" / path.name).read_bytes() == path.read_bytes()
    one, three = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "three"))
    assert three.pop("answer_loss", 0) == pytest.approx(one.pop("answer_loss", 0), rel=1e-5)
    assert three.pop("answer_perplexity", 0) == pytest.approx(one.pop("answer_perplexity", 0), rel=1e-4)
    assert three == one


def wait_for_a_step(folder: Path, process) -> None:
    end = time.monotonic() + 120
    while not ((folder / "train_loss.txt").exists() and os.path.getsize(folder / "train_loss.txt")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
