import json
import os
import shutil
import stat
import subprocess
import sys

import pytest

from jittor_lora.errors import UserError
from jittor_lora.system import jittor_copy

PLACE = """
import sys
from pathlib import Path
from jittor_lora.system import jittor_copy
home, config = sys.argv[1:]
print(jittor_copy.place(Path(home), "/usr/bin/g++", config, "1.3.11.0", grouped=False).folder)
"""


class Environment:
    """A virtual environment as `place` sees it: two packages and a python3-config."""

    def __init__(self, root):
        self.root, self.site, self.config = root, root / "site-packages", root / "bin" / "python3-config"
        for path, text in (("jittor/__init__.py", "version = 1"), ("jittor/src/op.h", "int op;"),
                           ("jittor/__pycache__/x.pyc", str(root)), ("jittor_utils/__init__.py", ""),
                           ("../include/python3.11/Python.h", "int python;")):
            (self.site / path).parent.mkdir(parents=True, exist_ok=True)
            (self.site / path).write_text(text)
        self.config.parent.mkdir()
        self.config.write_text(f'#!/bin/sh\ncase $1 in --includes) echo "-I{root}/include/python3.11 '
                               f'-I{root}/include/python3.11" ;; *) echo .cpython-311.so ;; esac\n')
        self.config.chmod(0o755)

    def start(self, home):
        source = str(os.path.dirname(os.path.dirname(os.path.dirname(jittor_copy.__file__))))
        return subprocess.Popen([sys.executable, "-c", PLACE, str(home), str(self.config)], stdout=subprocess.PIPE,
                                env={**os.environ, "PYTHONPATH": f"{self.site}:{source}"}, text=True)

    def place(self, home):
        process = self.start(home)
        said = process.communicate(timeout=60)[0].strip()
        assert process.returncode == 0
        return said


@pytest.fixture
def environments(tmp_path):
    return [Environment(tmp_path / name) for name in ("one", "two")]


def copies(home):
    return [path for path in (home / ".cache" / "jittor" / "jittor_lora").iterdir() if path.is_dir()]


def test_environments_share_a_copy_that_outlives_them(environments, tmp_path):
    one, two = environments
    first = one.place(tmp_path / "home")
    shutil.rmtree(one.root)
    assert two.place(tmp_path / "home") == first != ""
    assert (tmp_path / "home" / first / "site" / "jittor" / "src" / "op.h").read_text() == "int op;"
    assert not list(tmp_path.glob("home/**/*.pyc"))
    includes = subprocess.run([f"{first}/bin/python3-config", "--includes"], stdout=subprocess.PIPE, text=True).stdout
    assert (tmp_path / includes.strip()[2:] / "Python.h").read_text() == "int python;"


@pytest.mark.parametrize("path, text", [
    ("site-packages/jittor/src/op.h", "int pop;"), ("include/python3.11/Python.h", "int mython;"),
    ("site-packages/jittor_utils/new.py", "")])
def test_different_contents_are_not_shared(environments, tmp_path, path, text):
    one, two = environments
    first = one.place(tmp_path / "home")
    (two.root / path).write_text(text)
    assert two.place(tmp_path / "home") != first


def test_an_edit_in_place_is_noticed(environments, tmp_path):
    one, _ = environments
    first = one.place(tmp_path / "home")
    (one.site / "jittor" / "src" / "op.h").write_text("int pop;")
    assert one.place(tmp_path / "home") != first


def test_a_damaged_note_about_contents_is_ignored(environments, tmp_path):
    one, _ = environments
    first = one.place(tmp_path / "home")
    for note in tmp_path.glob("home/.cache/jittor/jittor_lora/seen-*.json"):
        note.write_text("[")
    assert one.place(tmp_path / "home") == first


def test_environments_that_start_together_make_one_copy(environments, tmp_path):
    processes = [environment.start(tmp_path / "home") for environment in environments * 2]
    said = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert said == {str(path) for path in copies(tmp_path / "home")} and len(said) == 1


def test_read_only_packages(environments, tmp_path):
    one, _ = environments
    for path in (one.site / "jittor" / "src" / "op.h", one.site / "jittor" / "src", one.site / "jittor"):
        path.chmod(path.stat().st_mode & ~0o222)
    copy = one.place(tmp_path / "home")
    for path in (one.site / "jittor", one.site / "jittor" / "src"):
        path.chmod(0o755)
    assert os.stat(f"{copy}/site/jittor").st_mode & stat.S_IWUSR  # for Python's bytecode
    shutil.rmtree(copy)


def test_leftovers_of_a_killed_process_are_removed(environments, tmp_path):
    left = tmp_path / "home" / ".cache" / "jittor" / "jittor_lora" / ".copying-x"
    left.mkdir(parents=True)
    environments[0].place(tmp_path / "home")
    assert not left.exists()


def test_a_path_that_breaks_jittors_commands(tmp_path, capsys):
    assert jittor_copy.place(tmp_path / "my home", "g++", "none", "1.3.11.0", grouped=True) is None
    assert "my home" in capsys.readouterr().err


def test_a_config_that_does_not_run(tmp_path):
    with pytest.raises(UserError, match="none --includes failed"):
        jittor_copy.place(tmp_path, "g++", str(tmp_path / "none"), "1.3.11.0", grouped=True)


def test_an_unwritable_cache(tmp_path):
    (tmp_path / ".cache").write_text("")
    with pytest.raises(UserError, match="JITTOR_HOME"):
        jittor_copy.place(tmp_path, "g++", "/bin/echo", "1.3.11.0", grouped=False)


@pytest.fixture
def helper(environments, tmp_path):
    """Runs the copy's Python with programs that print their arguments."""
    copy = environments[0].place(tmp_path / "home")
    for name in ("python", "g++"):
        path = tmp_path / "real" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\necho {name} "$@"\necho "$HOME"\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def call(*arguments):
        environ = {"PATH": os.environ["PATH"], "HOME": "/mine", jittor_copy.INTERPRETER: f"{tmp_path}/real/python"}
        return subprocess.run([f"{copy}/bin/python", *arguments], stdout=subprocess.PIPE, text=True,
                              env=environ).stdout.splitlines()

    return call


def test_an_operator_goes_to_the_compiler_at_once(helper, tmp_path):
    (tmp_path / "x_op.cc").write_text("int x;")
    said = helper("/site/jittor/utils/asm_tuner.py", f"--cc_path={tmp_path}/real/g++", f"{tmp_path}/x_op.cc", "-Ofast")
    assert said == [f"g++ {tmp_path}/x_op.cc -Ofast", "/mine"]


def test_an_operator_whose_assembly_is_edited_goes_to_jittors_tuner(helper, tmp_path):
    (tmp_path / "x_op.cc").write_text('// @begin replace "a" "b"\nint x;\n// @end')
    arguments = ["/site/jittor/utils/asm_tuner.py", f"--cc_path={tmp_path}/real/g++", f"{tmp_path}/x_op.cc", "-Ofast"]
    said, home = helper(*arguments)
    assert said == " ".join(["python", *arguments])
    note = json.loads((tmp_path / home / ".cache" / "jittor" / "config.json").read_text())
    assert note == {"JITTOR_HOME": str(tmp_path / "home")}
