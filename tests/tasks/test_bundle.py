"""A bundle is whole or not there, says what it holds, and installs where no network is."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import pytest

import small_run
from jittor_lora.cli.main import main
from jittor_lora.errors import UserError
from jittor_lora.tasks import bundle as task
from jittor_lora.tasks.bundle import bundle
from jittor_lora.tasks.bundle_wheels import Target, own_wheel, repack, unmet, wheels
from needs import needs_index, needs_no_network

HERE = f"3.{sys.version_info.minor}"
TARGET = Target("manylinux2014_x86_64", HERE)
Usage = namedtuple("Usage", "total used free")


def make_wheel(folder: Path, name: str, version: str = "1.0", requires=()) -> Path:
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/__init__.py", "")
        archive.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(
            ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}",
             *(f"Requires-Dist: {line}" for line in requires)]) + "\n\nText\nRequires-Dist: not-a-header\n")
    return path


class Index:
    """Stands for pip and its index: wheels by name, each with what it requires."""

    def __init__(self, **packages):
        self.packages, self.calls = packages, []

    def __call__(self, verb, *arguments):
        self.calls.append((verb, *arguments))
        folder = Path(next(a for a in arguments if a.startswith(("--dest=", "--wheel-dir="))).split("=", 1)[1])
        for wanted in (a for a in arguments if not a.startswith("-")):
            name = "jittor_lora" if "/" in wanted else re.match(r"[\w-]+", wanted)[0].replace("-", "_")
            if name in self.packages:
                make_wheel(folder, name, "1.3.11.0" if name == "jittor" else "1.0", self.packages[name])


@pytest.fixture
def index():
    return Index(jittor_lora=["jittor==1.3.11.*", "numpy"], jittor=["numpy"], numpy=[])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return small_run.make_files(tmp_path_factory.mktemp("bundled"), 6, 2)


def run(made, output, index, **changes):
    values = {"base": str(made / "base"), "data": str(made / "train.json"), "dev": str(made / "dev.json"),
              "output": output, "target": TARGET, "run_pip": index, **changes}
    return bundle(**values)


def test_what_a_bundle_holds(made, tmp_path, index):
    found = run(made, tmp_path / "b", index)
    files = {path.relative_to(tmp_path / "b").as_posix() for path in (tmp_path / "b").rglob("*") if path.is_file()}
    assert files == {"README.txt", "SHA256SUMS", "install.sh", "base/config.json", "base/model.safetensors",
                     "base/tokenizer.json", "data/train.json", "data/dev.json",
                     "wheels/jittor_lora-1.0-py3-none-any.whl", "wheels/jittor-1.3.11.0-py3-none-any.whl",
                     "wheels/numpy-1.0-py3-none-any.whl"}
    sums = dict(reversed(line.split("  ")) for line in (tmp_path / "b" / "SHA256SUMS").read_text().splitlines())
    assert sums == {name: hashlib.sha256((tmp_path / "b" / name).read_bytes()).hexdigest()
                    for name in files - {"SHA256SUMS"}}
    assert found.train.split()[:2] == [".venv/bin/jittor-lora", "train"] and "--dev data/dev.json" in found.train
    assert found.size == sum((tmp_path / "b" / name).stat().st_size for name in sums)
    readme = (tmp_path / "b" / "README.txt").read_text(encoding="utf-8")
    assert readme.count(found.train) == 2 and "\u65e0\u7f51\u7edc" in readme and "@" not in readme
    assert (tmp_path / "b" / "install.sh").stat().st_mode & 0o111
    assert (tmp_path / "b" / "data" / "train.json").read_bytes() == (made / "train.json").read_bytes()


def test_what_the_base_folder_has_besides_stays_there(made, tmp_path, index):
    shutil.copytree(made / "base", tmp_path / "base")
    (tmp_path / "base" / "secrets.txt").write_text("x")
    (tmp_path / "base" / "optimizer.pt").write_text("x")
    run(made, tmp_path / "b", index, base=str(tmp_path / "base"))
    assert sorted(path.name for path in (tmp_path / "b" / "base").iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json"]


def test_a_named_data_set_and_awkward_names(made, tmp_path, index):
    odd = tmp_path / "squad-v1.1-sample-train.json"
    shutil.copy(made / "dev.json", odd)
    strange = tmp_path / "my data; rm -rf $HOME\n.json"
    shutil.copy(made / "dev.json", strange)
    assert "--dev data/dev-squad-v1.1-sample-train.json" in run(
        made, tmp_path / "b", index, data="sample-train", dev=str(odd)).train
    assert "--data data/my_data__rm_-rf__HOME_.json " in run(
        made, tmp_path / "c", index, data=str(strange), dev=None).train


def failing(*arguments):
    raise UserError("no index")


def interrupted(*arguments):
    raise KeyboardInterrupt


@pytest.mark.parametrize(("pip", "error"), [(failing, UserError), (interrupted, KeyboardInterrupt)])
def test_nothing_is_left_of_one_that_fails(made, tmp_path, pip, error):
    with pytest.raises(error):
        run(made, tmp_path / "b", pip)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("changes", "message"), [
    ({"base": "./no/base"}, "no/base"), ({"data": "none.json"}, "none.json"), ({"dev": "none.json"}, "none.json")])
def test_wrong_contents_are_found_before_anything_is_fetched(made, tmp_path, index, changes, message):
    with pytest.raises(UserError, match=message):
        run(made, tmp_path / "b", index, **changes)
    assert index.calls == [] and list(tmp_path.iterdir()) == []


def test_damaged_data_is_not_bundled(made, tmp_path, index):
    (tmp_path / "bad.json").write_text('{"data": 3}')
    with pytest.raises(UserError, match="bad.json"):
        run(made, tmp_path / "b", index, data=str(tmp_path / "bad.json"))
    assert index.calls == []


def test_too_little_disk_space(made, tmp_path, index, monkeypatch):
    monkeypatch.setattr(task.shutil, "disk_usage", lambda path: Usage(1 << 40, 0, 1 << 20))
    with pytest.raises(UserError, match="expected 0.2 GiB of free disk space, found 0.0 GiB"):
        run(made, tmp_path / "b", index)
    assert index.calls == []


def test_a_gguf_base_is_one_file(made, tmp_path, index, monkeypatch):
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    monkeypatch.setattr(task, "load_base", lambda *_, **__: None)  # reading GGUF has its own tests
    assert "--base base/model.gguf " in run(made, tmp_path / "b", index, base=str(gguf)).train
    assert (tmp_path / "b" / "base" / "model.gguf").read_bytes() == b"GGUF"


def test_requirements_are_met_for_the_other_machine(tmp_path):
    folder = tmp_path / "wheels"
    folder.mkdir()
    make_wheel(folder, "a", requires=["b>=2", "c; python_version < '3.10'", "d; python_version >= '3.10'",
                                      "e; extra == 'x'", "f; sys_platform == 'win32'",
                                      "g; platform_machine == 'aarch64'", "h_i>0.5"])
    make_wheel(folder, "b", "1.5")
    make_wheel(folder, "h_i", "1.0")
    assert unmet(folder, Target("manylinux2014_x86_64", "3.9")) == ["b>=2", "c"]
    assert unmet(folder, Target("manylinux_2_28_aarch64", "3.11")) == ["b>=2", "d", "g"]


def test_what_pip_leaves_out_is_asked_for_again(tmp_path):
    index = Index(jittor_lora=["jittor==1.3.11.*", "one"], jittor=[], one=["two"], two=[])
    wheels(tmp_path / "w", TARGET, index)
    assert [call[-1] for call in index.calls if call[0] == "download"] == ["one", "two"]
    assert "--platform=manylinux2014_x86_64" in index.calls[-1] and "--only-binary=:all:" in index.calls[-1]


def test_packages_without_a_wheel_are_named(tmp_path):
    index = Index(jittor_lora=["jittor==1.3.11.*", "gone>=3"], jittor=[])
    with pytest.raises(UserError, match="gone>=3: no wheels were found for Python 3.9 on manylinux2014_aarch64"):
        wheels(tmp_path / "w", Target("manylinux2014_aarch64", "3.9"), index)


def test_platforms_that_a_newer_one_includes():
    flags = Target("manylinux_2_19_x86_64", "3.10").flags()
    assert [flag for flag in flags if flag.startswith("--platform")] == [
        "--platform=manylinux_2_19_x86_64", "--platform=manylinux_2_18_x86_64", "--platform=manylinux_2_17_x86_64",
        "--platform=manylinux2014_x86_64"]


def test_an_installed_package_is_packed_again(tmp_path):
    """What pip installs from the packed wheel is what was there."""
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-input", "--target"]
    (tmp_path / "made").mkdir()
    wheel = make_wheel(tmp_path / "made", "jittor_lora", "0.9", ["numpy"])
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("jittor_lora/data/a b.txt", "text")
        archive.writestr("jittor_lora-0.9.dist-info/entry_points.txt", "[console_scripts]\njl = jittor_lora:main\n")
        archive.writestr("jittor_lora-0.9.dist-info/WHEEL",
                         "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        names = archive.namelist()
        archive.writestr("jittor_lora-0.9.dist-info/RECORD", "".join(f"{name},,\n" for name in names))
    subprocess.run([*command, site, wheel], check=True)
    (installed,) = metadata.distributions(name="jittor-lora", path=[str(site)])
    (tmp_path / "packed").mkdir()
    packed = repack(installed, tmp_path / "packed")
    assert packed.name == wheel.name
    with zipfile.ZipFile(packed) as archive:
        assert {*names, "jittor_lora-0.9.dist-info/RECORD"} == set(archive.namelist())
    subprocess.run([*command, tmp_path / "again", packed], check=True)
    assert (tmp_path / "again" / "jittor_lora" / "data" / "a b.txt").read_text() == "text"
    (site / "jittor_lora" / "__init__.py").unlink()
    with pytest.raises(UserError, match="jittor_lora/__init__.py not found"):
        repack(installed, tmp_path / "packed")


def install(folder: Path, **environ) -> subprocess.CompletedProcess:
    return subprocess.run(["./install.sh"], cwd=folder, text=True, capture_output=True, stdin=subprocess.DEVNULL,
                          env={**os.environ, **environ})


def test_the_script_refuses_damaged_files_and_another_python(made, tmp_path, index):
    run(made, tmp_path / "b", index)
    (tmp_path / "b" / "base" / "model.safetensors").write_bytes(b"\0")
    done = install(tmp_path / "b")
    assert done.returncode == 1 and "base/model.safetensors" in done.stdout and "copy the folder again" in done.stderr
    assert not (tmp_path / "b" / ".venv").exists()
    other = Target("manylinux2014_x86_64", next(python for python in ("3.9", "3.12") if python != HERE))
    run(made, tmp_path / "c", index, target=other)
    done = install(tmp_path / "c", PATH="/usr/bin:/bin", PYTHON=sys.executable)
    assert done.returncode == 1 and f"expected Python {other.python} with venv" in done.stderr


@pytest.mark.parametrize(("arguments", "message"), [
    (["--platform", "win_amd64"], "expected manylinux2014_x86_64"), (["--python", "3.13"], "one of 3.9, 3.10"),
    (["--platform", "manylinux2014_x86_64; x"], "found manylinux2014_x86_64; x"), ([], "required but missing"),
])
def test_mistakes_on_the_command_line(arguments, message, capsys):
    assert main(["bundle", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_an_existing_folder_is_refused(made, tmp_path, capsys):
    (tmp_path / "kept.txt").write_text("x")
    assert main(["bundle", "--base", str(made / "base"), "--data", str(made / "train.json"), "--output",
                 str(tmp_path)]) == 2
    assert "expected a new or empty folder" in capsys.readouterr().err


@pytest.mark.slow
@needs_index
@needs_no_network
def test_installed_and_trained_without_a_network(made, tmp_path):
    """The whole way, with a network here and none there. Python's headers and a compiler come from the system."""
    found = subprocess.run([sys.executable, "-m", "jittor_lora", "bundle", "--base", made / "base", "--data",
                            made / "train.json", "--output", tmp_path / "bundle", "--python", HERE],
                           check=True, text=True, stdout=subprocess.PIPE).stdout
    moved = (tmp_path / "bundle").rename(tmp_path / "another machine")
    alone = ["unshare", "--net"]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environ["PYTHON"] = os.path.realpath(sys.executable)
    subprocess.run([*alone, "./install.sh"], cwd=moved, env=environ, check=True)
    train = found.splitlines()[-1].strip()
    subprocess.run([*alone, "sh", "-c", f"{train} --max-steps 2"], cwd=moved, env=environ, check=True)
    assert len((moved / "runs" / "first" / "train_loss.txt").read_text().splitlines()) == 2


@pytest.mark.slow
@needs_index
def test_the_wheel_of_a_checkout(tmp_path):
    wheel = own_wheel(tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        assert "jittor_lora/tasks/bundle.py" in archive.namelist()
