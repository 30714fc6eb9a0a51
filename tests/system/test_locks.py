from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from jittor_lora.errors import UserError
from jittor_lora.system.locks import locked

HOLD = ("import sys\nfrom jittor_lora.system.locks import locked\n"
        "with locked(sys.argv[1]):\n    print('in', flush=True)\n    sys.stdin.read()")


@pytest.fixture
def holder(tmp_path):
    """A process that holds a folder's lock until its standard input ends."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE,
                               stdin=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_until_the_first_ends(holder, tmp_path):
    with pytest.raises(UserError, match=rf"run: another process is working in this folder \(process {holder.pid} on .*"
                                        "since 2"):
        with locked(tmp_path / "run"):
            pass
    holder.communicate("")
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "run"):
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_the_lock_ends_with_a_killed_process(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / ".lock").exists()
    with locked(tmp_path / "run"):
        pass
    assert list((tmp_path / "run").iterdir()) == []


def test_a_surviving_child_does_not_hold_the_lock(tmp_path):
    with locked(tmp_path):
        child = subprocess.Popen(["sleep", "60"])
    try:
        with locked(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()


def test_files_created_for_the_lock_are_removed_with_it(tmp_path):
    with pytest.raises(KeyError):
        with locked(tmp_path / "a" / "b"):
            raise KeyError
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "file").write_text("")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]


def test_the_lock_is_never_on_a_removed_file(tmp_path, monkeypatch):
    """Between opening and locking the file, its previous owner removes it and a third process creates a new one."""
    real, times = fcntl.flock, []

    def flock(descriptor, how):
        if not times:
            os.unlink(tmp_path / ".lock")
            (tmp_path / ".lock").write_text("")
        times.append(descriptor)
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path):
        assert len(times) == 2
        with pytest.raises(UserError, match="another process"):
            with locked(tmp_path):
                pass


def test_a_file_system_without_locks_is_reported(tmp_path, monkeypatch, capsys):
    def flock(descriptor, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path):
        assert "this file system has no locks" in capsys.readouterr().err


def test_an_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/run: cannot be written .Not a directory"):
        with locked(tmp_path / "file" / "run"):
            pass
