"""Runs that are killed, or that the system fails, at any moment: what they leave is whole, and they go on exactly."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

import crash
import small_run

# What a machine does: full disk, read-only disk, faulty disk, quota, no memory.
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
    """Some of the moments of a run, as shares of it, for the plain tests, and many for the slow ones."""
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
    # The note in the lock, and what is removed after the end of a block, are not missed where they cannot be written.
    assert code in (0, 2) and "Traceback" not in said, said
    if code == 2:
        cause = "memory of this machine" if fault == "MemoryError" else os.strerror(getattr(errno, fault))
        assert cause in said.splitlines()[-1]
    one.start([*arguments, "--resume"], log)
    assert one.end() == 0, log.read_text()
    assert newest == 0 or "Going on from" in log.read_text()
    crash.check_end(output, whole)


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a disk of so many KiB, or gives the one it has made another size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def size(kib: int) -> Path:
        again = "remount," if os.path.ismount(folder) else ""
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"{again}size={kib}k", "tmpfs", str(folder)],
                              stderr=subprocess.PIPE)
        if done.returncode:
            pytest.skip("may not mount a disk here")
        return folder

    yield size
    subprocess.run(["umount", str(folder)], stderr=subprocess.DEVNULL)


@pytest.mark.skipif(shutil.which("mount") is None, reason="there is no mount")
@pytest.mark.parametrize("kib", [64, 144, *(pytest.param(k, marks=pytest.mark.slow) for k in range(16, 400, 24))])
def test_a_full_disk(kib, one, whole, small_disk, tmp_path):
    output, log = small_disk(kib) / "run", tmp_path / "log"
    arguments = [*whole.arguments, "--output", str(output), *SHORT, "--no-tensorboard", "--resume"]
    one.start(arguments, log)
    code, said = one.end(), log.read_text()
    crash.check(output, whole)
    assert (code, "No space left" in said.splitlines()[-1]) in ((2, True), (0, False)) and "Traceback" not in said, said
    small_disk(4096)
    one.start(arguments, log)
    assert one.end() == 0, log.read_text()
    crash.check_end(output, whole)
