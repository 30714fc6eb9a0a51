"""Runs killed, or failed by the system, at any moment: their files are whole, and they resume exactly."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

import crash
import small_run
from needs import needs_mount

# Faults of a machine: full disk, read-only disk, faulty disk, quota, no memory.
FAULTS = ("ENOSPC", "EROFS", "EIO", "EDQUOT", "MemoryError")
SHORT = ["--save-every", "1", "--keep-checkpoints", "1"]


@pytest.fixture(scope="module")
def one():
    with crash.server() as server:
        yield server


@pytest.fixture(scope="module")
def whole(one, tmp_path_factory):
    files = small_run.make_files(tmp_path_factory.mktemp("files"), 14, 4)
    return crash.make_whole(one, files, "accumulation")


@pytest.mark.parametrize("kills, names", [
    (5, ["accumulation"]), pytest.param(200, tuple(crash.VARIANTS), marks=pytest.mark.slow)])
def test_random_kills_lose_nothing(kills, names, tmp_path):
    report = crash.storm(tmp_path, kills, kills, names)
    assert sum(report.kills.values()) >= kills and sum(report.runs.values()) > 0
    print(report)


def moments(count: int, plain: int) -> list:
    """Moments of a run, as fractions of it: some for the plain tests, many for the slow ones."""
    shares = [random.Random(number).random() for number in range(count)]
    return [*shares[:plain], *(pytest.param(share, marks=pytest.mark.slow) for share in shares[plain:])]


@pytest.mark.parametrize("share", moments(60, 5))
def test_a_fault_of_the_machine_ends_the_run_and_leaves_it_whole(share, one, whole, tmp_path):
    fault = FAULTS[int(share * 1e6) % len(FAULTS)]
    output, log = tmp_path / "run", tmp_path / "log"
    arguments = [*whole.arguments, "--output", str(output), *SHORT]
    one.start(arguments, log, output, 1 + int(share * whole.events), fault)
    code, said = one.end(), log.read_text()
    newest = crash.check(output, whole)
    # The note in the lock, and cleaning up after a block, may fail without consequences.
    assert code in (0, 2) and "Traceback" not in said, said
    if code == 2:
        cause = "out of memory" if fault == "MemoryError" else os.strerror(getattr(errno, fault))
        assert cause in said.splitlines()[-1]
    one.start([*arguments, "--resume"], log)
    assert one.end() == 0, log.read_text()
    assert newest == 0 or "Resuming from" in log.read_text()
    crash.check_end(output, whole)


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a disk of this many KiB, or resizes it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def size(kib: int) -> Path:
        again = "remount," if os.path.ismount(folder) else ""
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"{again}size={kib}k", "tmpfs", str(folder)], check=True)
        return folder

    yield size
    subprocess.run(["umount", str(folder)], stderr=subprocess.DEVNULL)


@needs_mount
@pytest.mark.parametrize("kib", [64, 144, *(pytest.param(k, marks=pytest.mark.slow) for k in range(16, 400, 24))])
def test_a_full_disk(kib, one, whole, small_disk, tmp_path):
    output, log = small_disk(kib) / "run", tmp_path / "log"
    arguments = [*whole.arguments, "--output", str(output), *SHORT, "--resume"]
    one.start(arguments, log)
    code, said = one.end(), log.read_text()
    crash.check(output, whole)
    assert (code, "No space left" in said.splitlines()[-1]) in ((2, True), (0, False)) and "Traceback" not in said, said
    small_disk(4096)
    one.start(arguments, log)
    assert one.end() == 0, log.read_text()
    crash.check_end(output, whole)


@pytest.mark.parametrize("memory", [3, *(pytest.param(m, marks=pytest.mark.slow) for m in (1, 2, 5, 8, 12, 16, 20))])
def test_too_little_memory(memory, one, whole, tmp_path):
    """Jittor, oneDNN, OpenMP and the loader may end the process when an allocation fails; that is like a kill."""
    output, log = tmp_path / "run", tmp_path / "log"
    arguments = [*whole.arguments, "--output", str(output), *SHORT, "--resume"]
    one.start(arguments, log, memory=memory)
    code, said = one.end(), log.read_text()
    crash.check(output, whole)
    endings = ("Segfault", "libgomp: ", "cannot allocate memory for thread-local data")
    assert code in (0, 2) or code < 0 or any(ending in said for ending in endings), said
    assert code != 2 or "out of memory" in said.splitlines()[-1], said
    one.start(arguments, log)
    assert one.end() == 0, log.read_text()
    crash.check_end(output, whole)


def all_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def ran(one, whole, tmp_path_factory):
    """A folder with the base, the data, and the run folder `run`."""
    folder = Path(whole.arguments[2]).parent
    return Path(shutil.move(folder / "whole-accumulation", folder / "run")).parent


@pytest.fixture(scope="module")
def merged(one, ran):
    """Arguments of a merge, its files, and the number of its file operations."""
    arguments = ["merge", "--base", str(ran / "base"), "--adapter", str(ran / "run"), "--output"]
    one.start([*arguments, str(ran / "merged")], ran / "log", ran, 0)
    assert one.end() == 0, (ran / "log").read_text()
    return arguments, all_files(ran / "merged"), int((ran / "log.count").read_text())


@pytest.mark.parametrize("fault", ["kill", "ENOSPC"])
@pytest.mark.parametrize("share", moments(30, 2))
def test_a_merge_is_complete_or_absent_and_can_be_repeated(share, fault, one, merged, tmp_path):
    arguments, files, events = merged
    output, log = tmp_path / "merged", tmp_path / "log"
    one.start([*arguments, str(output)], log, tmp_path, 1 + int(share * events), fault)
    code = one.end()
    assert code in (0, -9 if fault == "kill" else 2), log.read_text()
    assert not output.exists() or all_files(output) == files
    assert code == -9 or not list(tmp_path.glob(".*"))
    if not output.exists():
        one.start([*arguments, str(output)], log)
        assert one.end() == 0, log.read_text()
    assert all_files(output) == files and not list(tmp_path.glob(".*"))


@pytest.fixture(scope="module")
def evaluated(one, ran):
    """Two evaluations, of base and adapter: arguments and files of each, and the file operations of the second."""
    found = []
    for name, more in (("base", []), ("adapter", ["--adapter", str(ran / "run")])):
        arguments = ["evaluate", "--base", str(ran / "base"), "--data", str(ran / "dev.json"), *more, "--output"]
        one.start([*arguments, str(ran / f"scores-{name}")], ran / "log", ran, 0)
        assert one.end() == 0, (ran / "log").read_text()
        found.append((arguments, all_files(ran / f"scores-{name}")))
    return *found, int((ran / "log.count").read_text())


@pytest.mark.parametrize("fault", ["kill", "ENOSPC"])
@pytest.mark.parametrize("share", moments(30, 2))
def test_scores_go_with_their_predictions(share, fault, one, evaluated, tmp_path):
    (_, old), (arguments, new), events = evaluated
    output, log = tmp_path / "scores", tmp_path / "log"
    output.mkdir()
    for name, content in old.items():
        (output / name).write_bytes(content)
    assert old["predictions.json"] != new["predictions.json"]
    one.start([*arguments, str(output)], log, output, 1 + int(share * events), fault)
    code = one.end()
    assert code in (0, -9 if fault == "kill" else 2), log.read_text()
    found = {name: content for name, content in all_files(output).items() if not name.startswith(".")}
    assert found in (old, new) or "metrics.json" not in found
    assert fault == "kill" or found in (old, new)
    one.start([*arguments, str(output)], log)
    assert one.end() == 0, log.read_text()
    assert {name: (output / name).read_bytes() for name in new} == new


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_evaluation_leaves_nothing_half_done(number, one, evaluated, tmp_path):
    child = one.start([*evaluated[1][0], str(tmp_path / "scores")], tmp_path / "log")
    time.sleep(0.2)
    with contextlib.suppress(ProcessLookupError):  # a fast machine may be done by then
        os.kill(child, number)
    assert one.end() in (0, 128 + number), (tmp_path / "log").read_text()
    assert not (tmp_path / "scores").exists() or all_files(tmp_path / "scores") == evaluated[1][1]
