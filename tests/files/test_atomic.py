from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jittor_lora.errors import UserError
from jittor_lora.files import atomic
from jittor_lora.files.atomic import atomic_folder, atomic_write, make_folder, remove_leftovers, written_together


class PowerCut(BaseException):
    pass


@pytest.fixture
def order(monkeypatch):
    """The disk operations, in order: ("fsync", name), ("rename", name)."""
    done = []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def synced(descriptor):
        done.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def named(function):
        def call(old, new):
            done.append(("rename", os.path.basename(new)))
            function(old, new)
        return call

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", named(replace))
    monkeypatch.setattr(os, "rename", named(rename))
    return done


def test_a_file_is_flushed_before_its_rename_and_the_folder_after(tmp_path, order):
    with atomic_write(tmp_path / "new" / "deep" / "file") as stream:
        stream.write("text")
    (first, made), (second, above), (third, temporary), *rest = order
    assert {made, above} == {"new", tmp_path.name} and first == second == third == "fsync"
    assert temporary.startswith(".file.") and rest == [("rename", "file"), ("fsync", "deep")]
    assert (tmp_path / "new/deep/file").stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_pair(folder: Path, version: str) -> None:
    with written_together(folder, "config") as stage:
        for name in ("a", "weights", "config"):
            with atomic_write(stage / name) as stream:
                stream.write(f"{name} {version}")


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_files_written_together_are_renamed_at_the_end(tmp_path, order):
    (tmp_path / "other").write_text("mine")
    write_pair(tmp_path, "1")
    assert contents(tmp_path) == {"other": "mine", "a": "a 1", "weights": "weights 1", "config": "config 1"}
    names = [name for what, name in order if what == "rename"]
    assert names == ["a", "weights", "config"] * 2
    assert order[-1] == ("fsync", tmp_path.name)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("same_config", [False, True])
def test_the_last_file_is_never_found_without_its_companions(same_config, tmp_path, monkeypatch):
    """Stopped at any operation, the old files are found, the new ones, or none."""
    states = []
    for at in range(1, 40):
        folder = tmp_path / str(at)
        write_pair(folder, "1")
        with monkeypatch.context() as patch:
            stop_at(patch, at)
            try:
                write_pair(folder, "1" if same_config else "2")
            except PowerCut:
                pass
            else:
                break
        found = {name: (folder / name).read_text() for name in ("a", "weights", "config") if (folder / name).exists()}
        if "config" in found:
            version = found["config"][-1]
            assert found == {name: f"{name} {version}" for name in ("a", "weights", "config")}
            states.append(version)
        else:
            states.append("none")
        remove_leftovers(folder)
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert (states == sorted(states, key=["1", "none", "2"].index)) and ("none" in states) != same_config and at > 10


def stop_at(patch, at: int) -> None:
    """Raise `PowerCut` in place of disk operation `at`, and of every later one."""
    seen = 0

    def counted(function):
        def call(*arguments, **options):
            nonlocal seen
            seen += 1
            if seen >= at:
                raise PowerCut
            return function(*arguments, **options)
        return call

    for name in ("fsync", "replace", "rename", "unlink"):
        patch.setattr(os, name, counted(getattr(os, name)))
    patch.setattr(Path, "unlink", counted(Path.unlink))
    patch.setattr(atomic.shutil, "rmtree", counted(atomic.shutil.rmtree))
    patch.setattr(atomic.tempfile, "mkdtemp", counted(atomic.tempfile.mkdtemp))


def test_a_failed_write_leaves_the_old_files(tmp_path):
    write_pair(tmp_path, "1")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path}/weights: cannot be written .No space left"):
        with written_together(tmp_path, "config") as stage, atomic_write(stage / "weights") as stream:
            stream.write("weights 2")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert contents(tmp_path) == before and len(list(tmp_path.iterdir())) == 3


def test_a_folder_is_whole_or_absent(tmp_path, order):
    target = tmp_path / "made" / "model"
    with atomic_folder(target) as stage:
        (stage / "deep").mkdir()
        (stage / "deep" / "file").write_text("1")
        assert not target.exists()
    assert contents(target) == {"deep/file": "1"} and list(target.parent.iterdir()) == [target]
    assert order[-3:] == [("fsync", ".model.unfinished"), ("rename", "model"), ("fsync", "made")]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(errno.ENOSPC, "full")])
def test_an_interrupted_folder_is_absent(error, tmp_path):
    with pytest.raises((KeyboardInterrupt, MemoryError, UserError)):
        with atomic_folder(tmp_path / "model") as stage:
            (stage / "file").write_text("1")
            raise error
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_replaced_and_a_full_one_is_not(tmp_path):
    (tmp_path / "empty").mkdir()
    with atomic_folder(tmp_path / "empty") as stage:
        (stage / "file").write_text("1")
    with pytest.raises(UserError, match="cannot be written .Directory not empty"):
        with atomic_folder(tmp_path / "empty") as stage:
            (stage / "file").write_text("2")
    assert contents(tmp_path) == {"empty/file": "1"}


def test_leftovers_of_a_killed_writer_are_removed_by_the_next(tmp_path):
    code = ("import os, signal, sys\nfrom jittor_lora.files.atomic import atomic_folder\n"
            "with atomic_folder(sys.argv[1]) as stage:\n"
            "    (stage / 'half').write_text('1')\n    print('in', flush=True)\n    sys.stdin.read()")
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "model")], stdout=subprocess.PIPE,
                               stdin=subprocess.PIPE)
    process.stdout.readline()
    with pytest.raises(UserError, match="another process is writing it"):
        with atomic_folder(tmp_path / "model"):
            pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [path.name for path in tmp_path.iterdir()] == [".model.unfinished"]
    with atomic_folder(tmp_path / "model") as stage:
        (stage / "file").write_text("2")
    assert contents(tmp_path) == {"model/file": "2"}


def test_a_mount_point_is_refused_at_once():
    with pytest.raises(UserError, match="/proc: is a mount point"):
        with atomic_folder("/proc"):
            pass


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    others = (".lock", ".notes.tmp", "a.12345678.tmp", ".a.12345678.tmp.txt", ".a.UPPERCAS.tmp")
    for name in (*others, ".step-00000001.safetensors.a_b45678.tmp"):
        (tmp_path / name).write_text("")
    (tmp_path / ".config.json.abcdefgh.tmp").mkdir()
    (tmp_path / ".config.json.abcdefgh.tmp" / "weights").write_text("")
    remove_leftovers(tmp_path, tmp_path / "missing")
    assert {path.name for path in tmp_path.iterdir()} == set(others)


def test_existing_folders_are_not_flushed(tmp_path, order):
    make_folder(tmp_path)
    assert order == []
