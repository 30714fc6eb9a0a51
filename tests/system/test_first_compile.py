import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jittor_lora.errors import UserError
from jittor_lora.system import first_compile
from jittor_lora.system.jittor_copy import Copy


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Shadows the real `jittor` with a module of the given source, for child processes."""
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def write(source):
        (tmp_path / "jittor.py").write_text(f"import os, sys, time\nCACHE = {str(tmp_path / 'cache')!r}\n{source}")
        return first_compile.marker(tmp_path / "cache", {"compiler": "g++"})

    return write


WORKS = "open(CACHE + '/jittor_core.so', 'w').close()\n"


def test_the_marker_depends_on_the_settings(tmp_path):
    one, other = (first_compile.marker(tmp_path, {"use_mkl": value}) for value in "01")
    assert one != other
    assert one == first_compile.marker(tmp_path, {"use_mkl": "0"})


def test_a_warm_cache_needs_the_marker_and_the_library(tmp_path):
    mark = first_compile.marker(tmp_path, {})
    (tmp_path / "jittor_core.cpython.so").touch()
    assert not first_compile.is_warm(mark)
    mark.touch()
    assert first_compile.is_warm(mark)
    (tmp_path / "jittor_core.cpython.so").unlink()
    assert not first_compile.is_warm(mark)


def test_a_quick_import_prints_nothing(fake):
    mark, screen = fake(WORKS), io.StringIO()
    first_compile.compile_jittor(mark, os.environ, screen)
    assert first_compile.is_warm(mark)
    assert screen.getvalue() == ""


def test_a_long_import_shows_elapsed_seconds(fake, monkeypatch):
    monkeypatch.setattr(first_compile, "QUIET_SECONDS", 0.1)
    mark, screen = fake("time.sleep(1)\n" + WORKS), io.StringIO()
    first_compile.compile_jittor(mark, os.environ, screen)
    assert "once, about 2 to 5 minutes" in screen.getvalue()
    assert "0 of about 160 parts compiled" in screen.getvalue()
    assert "\r" not in screen.getvalue()


CUDA_WORKS = """
for folder in ("obj_files", "gen"):
    os.makedirs(CACHE + "/cu13.0.88_sm_86/" + folder)
open(CACHE + "/cu13.0.88_sm_86/obj_files/op.cc.o", "w").close()
open(CACHE + "/cu13.0.88_sm_86/jittor_core.so", "w").close()
time.sleep(1)
"""


def test_with_cuda_the_core_and_its_parts_are_one_folder_below(fake, monkeypatch):
    monkeypatch.setattr(first_compile, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(first_compile, "LINE_SECONDS", 0.1)
    mark, screen = fake(CUDA_WORKS), io.StringIO()
    first_compile.compile_jittor(mark, {**os.environ, "nvcc_path": "/usr/bin/nvcc"}, screen)
    assert first_compile.is_warm(mark)
    assert "once, about 5 to 8 minutes" in screen.getvalue()
    assert "1 of about 170 parts compiled" in screen.getvalue()


def test_an_exit_after_rebuilding_the_helper_is_retried(fake):
    mark = fake("tried = CACHE + '/tried'\nif not os.path.exists(tried):\n    open(tried, 'w').close()\n"
                "    sys.exit(0)\n" + WORKS)
    first_compile.compile_jittor(mark, os.environ, io.StringIO())
    assert first_compile.is_warm(mark)


def test_a_failure_shows_the_end_of_the_output(fake):
    mark = fake("print('x\\n' * 100)\nraise RuntimeError('cc1plus: out of memory')")
    with pytest.raises(UserError) as error:
        first_compile.compile_jittor(mark, os.environ, io.StringIO())
    assert "cc1plus: out of memory" in str(error.value)
    assert "jittor-lora doctor" in str(error.value)
    assert len(str(error.value).splitlines()) < 24


@pytest.fixture
def grouped(tmp_path):
    """A copy of Jittor whose compiler is the program for large units."""
    copy = Copy(tmp_path / "copy", str(tmp_path / "copy" / "bin" / "g++"), True)
    copy.plain.parent.mkdir(parents=True)
    (copy.site / "jittor").mkdir(parents=True)
    return copy


# Fails with large units; works file by file, from an empty folder.
PLAIN_ONLY = """
PLAIN = {plain!r}
if not os.path.exists(PLAIN):
    open(CACHE + "/obj_files/a.o", "w").write("a whole unit")
    sys.exit("cc1plus: no such unit")
assert not os.listdir(CACHE + "/obj_files")
"""


def test_units_that_do_not_compile_are_compiled_file_by_file(fake, grouped, tmp_path):
    (tmp_path / "cache" / "obj_files").mkdir()
    mark, screen = fake(PLAIN_ONLY.format(plain=str(grouped.plain)) + WORKS), io.StringIO()
    first_compile.compile_jittor(mark, os.environ, screen, grouped)
    assert first_compile.is_warm(mark) and grouped.plain.exists()
    assert "could not be compiled in large units" in screen.getvalue()
    log = screen.getvalue().split("(see ")[1].split(")")[0]
    assert "no such unit" in Path(log).read_text()


def test_a_failure_both_ways_starts_over_the_next_time(fake, grouped, tmp_path):
    (tmp_path / "cache" / "obj_files").mkdir()
    mark = fake("open(CACHE + '/obj_files/a.o', 'w').close(); sys.exit('cc1plus: out of memory')")
    with pytest.raises(UserError, match="out of memory"):
        first_compile.compile_jittor(mark, os.environ, io.StringIO(), grouped)
    assert not grouped.plain.exists() and not list((tmp_path / "cache" / "obj_files").iterdir())


def test_progress_of_large_units_counts_them(fake, grouped, tmp_path, monkeypatch):
    monkeypatch.setattr(first_compile, "QUIET_SECONDS", 0.1)
    (tmp_path / "cache" / "obj_files").mkdir()
    for name in ("data.o", "obj_files/op_register.cc.o", "obj_files/event_queue.cc.o"):  # the last is part of a unit
        (tmp_path / "cache" / name).touch()
    mark, screen = fake("time.sleep(1)\n" + WORKS), io.StringIO()
    first_compile.compile_jittor(mark, os.environ, screen, grouped)
    assert "s, 2 of about " in screen.getvalue()


PARENT = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from jittor_lora.system import first_compile
try:
    first_compile.compile_jittor(Path(sys.argv[1]) / "cache" / "compiled-x", os.environ, sys.stderr)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_the_child_ends_with_its_parent(fake, tmp_path, how):
    fake("open(CACHE + '/pid', 'w').write(str(os.getpid()))\n"
         "import subprocess; subprocess.run(['sleep', '60'])\n")
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stderr=subprocess.PIPE)
    pid = _wait_for(lambda: int((tmp_path / "cache" / "pid").read_text() or "x"))
    parent.send_signal(how)
    said = parent.communicate(timeout=20)[1].decode()
    assert ("Nothing is broken" in said, parent.returncode == 130) == ((how == signal.SIGINT,) * 2)
    _wait_for(lambda: not _group_alive(pid) or int("x"))


def _wait_for(get, seconds=20):
    """The value of `get` once it no longer raises ValueError or FileNotFoundError."""
    end = time.monotonic() + seconds
    while True:
        try:
            return get()
        except (ValueError, FileNotFoundError):
            assert time.monotonic() < end
            time.sleep(0.05)


def _group_alive(pid):
    """Whether a process of the group runs; one that ended but was not reaped does not count."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended, but not reaped
            state, _, group = stat.read_text().rsplit(")", 1)[1].split()[:3]
            if int(group) == pid and state != "Z":
                return True
    return False
