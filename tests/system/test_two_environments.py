"""Two virtual environments with the same Jittor: it is compiled once, even if one is deleted. Takes minutes."""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import jittor_lora

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")]

# One of Jittor's own operators, a oneDNN product, and one of our kernels.
PROGRAM = """
import sys
import numpy as np
from jittor_lora.ops.cpu.library import library
from jittor_lora.system.runtime import jt
x = jt.array(np.arange(6, dtype=np.float32).reshape(2, 3))
library()
print((x @ x.transpose()).numpy().tolist(), (x * float(sys.argv[1]) + x.sum()).numpy().tolist())
"""


def expected(factor):
    plus = [[value * factor + 15 for value in row] for row in ([0.0, 1.0, 2.0], [3.0, 4.0, 5.0])]
    return f"[[5.0, 14.0], [14.0, 50.0]] {plus}\n"


class Environment:
    def __init__(self, root, compiler):
        self.root, self.compiler = root, compiler
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root)], check=True)
        site, = root.glob("lib/python3*/site-packages")
        others = {str(Path(jittor_lora.__file__).parent.parent)}
        for name in ("jittor", "jittor_utils"):
            installed = Path(str(metadata.distribution("jittor").locate_file(name)))
            shutil.copytree(installed, site / name, ignore=shutil.ignore_patterns("__pycache__"))
            others.add(str(installed.parent))
        (site / "others.pth").write_text("\n".join(sorted(others)) + "\n")

    def start(self, home, factor=1.0):
        environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "JITTOR_HOME")}
        return subprocess.Popen([str(self.root / "bin" / "python"), "-c", PROGRAM, str(factor)], text=True,
                                env={**environ, "HOME": str(home), "cc_path": str(self.compiler)},
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    """A compiler that logs its outputs."""
    folder = tmp_path_factory.mktemp("compiler")
    program = folder / "g++"
    program.write_text("#!/bin/sh\nfor word; do\n"
                       f"[ \"$before\" = -o ] && echo \"$word\" >> {folder}/made; before=$word\n"
                       f"done\nexec {shutil.which('g++')} \"$@\"\n")
    program.chmod(0o755)
    return program


def made(compiler):
    """The compiler's outputs since the last call."""
    log = compiler.parent / "made"
    names = [Path(line).name for line in log.read_text().splitlines()] if log.exists() else []
    log.write_text("")
    return names


def finish(process, output):
    said, error = process.communicate(timeout=3000)
    assert (process.returncode, said) == (0, output), error


def test_two_environments(tmp_path, compiler):
    home = tmp_path / "home"
    one, two = (Environment(tmp_path / name, compiler) for name in ("one", "two"))
    together = [environment.start(home) for environment in (one, two)]
    for process in together:
        finish(process, expected(1.0))
    names = made(compiler)
    assert sum(name.startswith("jittor_core") for name in names) == 1
    objects = [name for name in names if name.endswith(".o")]
    assert len(objects) > 100 and len(objects) == len(set(objects))
    for environment in (one, two, one):  # in turns
        finish(environment.start(home), expected(1.0))
    assert made(compiler) == []

    shutil.rmtree(one.root)
    finish(two.start(home), expected(1.0))
    assert made(compiler) == []
    finish(two.start(home, 2.0), expected(2.0))
    assert not list(home.glob("**/large_units.log"))
