import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from jittor_lora.errors import UserError
from jittor_lora.system import onednn
from needs import needs_kernels

HEADERS = ["dnnl.h", "dnnl.hpp", "oneapi/dnnl/dnnl.h", "oneapi/dnnl/dnnl.hpp"]


def packages(prefix: Path):
    """A `metadata.distribution` for the two oneDNN packages, installed below `prefix` as by pip."""
    site = prefix / "lib" / "python3" / "site-packages"
    contents = {onednn.HEADERS: [f"../../../include/{name}" for name in HEADERS],
                onednn.LIBRARY: ["../../libdnnl.so.2", "../../libdnnl.so"]}
    for name, entries in contents.items():
        info = site / f"{name.replace('-', '_')}-2022.2.1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2022.2.1\n")
        (info / "RECORD").write_text("".join(f"{entry},,\n" for entry in entries))
        for entry in entries:
            path = Path(os.path.normpath(site / entry))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{prefix.name} {path.name}")

    def find(name: str) -> metadata.Distribution:
        info = site / f"{name.replace('-', '_')}-2022.2.1.dist-info"
        if not info.exists():
            raise metadata.PackageNotFoundError(name)
        return metadata.PathDistribution(info)

    return find


def test_places_headers_and_library_below_a_new_home(tmp_path):
    find = packages(tmp_path / "venv")
    assert onednn.place(tmp_path / "home", find)
    target = onednn.folder(tmp_path / "home")
    assert onednn.is_placed(target)
    assert (target / "include" / "oneapi" / "dnnl" / "dnnl.hpp").read_text() == "venv dnnl.hpp"
    assert {(target / "lib" / name).read_text() for name in onednn.LINKS} == {"venv libdnnl.so.2"}
    assert not onednn.place(tmp_path / "home", find)


def test_only_one_folder_starts_with_dnnl(tmp_path):
    onednn.place(tmp_path, packages(tmp_path / "venv"))
    names = os.listdir(onednn.folder(tmp_path).parent)
    assert [name for name in names if name.startswith("dnnl")] == [onednn.folder(tmp_path).name]
    assert not [name for name in names if name.startswith(".placing")]


@pytest.mark.parametrize("links", [True, False])
def test_the_placed_copy_outlives_its_environment(tmp_path, links, monkeypatch):
    find = packages(tmp_path / "venv")
    if not links:  # another file system, or another user's files
        monkeypatch.setattr(os, "link", lambda *paths: os.stat(tmp_path / "none"))
    onednn.place(tmp_path / "home", find)
    shutil.rmtree(tmp_path / "venv")
    target = onednn.folder(tmp_path / "home")
    assert onednn.is_placed(target)
    assert (target / "lib" / "libmkldnn.so").read_text() == "venv libdnnl.so.2"


def test_replaces_links_of_a_deleted_environment(tmp_path):
    """Version 0.1 linked to the files of an environment."""
    library = onednn.folder(tmp_path / "home") / "lib" / onednn.LINKS[0]
    library.parent.mkdir(parents=True)
    library.symlink_to(tmp_path / "gone")
    assert onednn.place(tmp_path / "home", packages(tmp_path / "new"))
    assert (onednn.folder(tmp_path / "home") / "lib" / "libmkldnn.so").read_text() == "new libdnnl.so.2"


def test_replaces_a_folder_that_is_itself_a_dangling_link(tmp_path):
    target = onednn.folder(tmp_path)
    target.parent.mkdir(parents=True)
    target.symlink_to(tmp_path / "gone")
    assert onednn.place(tmp_path, packages(tmp_path / "venv"))
    assert onednn.is_placed(target)


def test_leaves_a_downloaded_onednn_alone(tmp_path):
    target = onednn.folder(tmp_path)
    for path in [target / "include" / name for name in HEADERS] + [target / "lib" / name for name in onednn.LINKS]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("downloaded")

    def find(name):
        raise AssertionError("packages are not needed")

    assert not onednn.place(tmp_path, find)
    assert (target / "lib" / "libmkldnn.so").read_text() == "downloaded"


def test_completes_a_half_unpacked_download(tmp_path):
    (onednn.folder(tmp_path) / "lib").mkdir(parents=True)
    (onednn.folder(tmp_path) / "lib" / "libmkldnn.so").write_text("half")
    assert onednn.place(tmp_path, packages(tmp_path / "venv"))
    assert (onednn.folder(tmp_path) / "lib" / "libmkldnn.so").read_text() == "venv libdnnl.so.2"


@pytest.mark.parametrize("name", [onednn.HEADERS, onednn.LIBRARY])
def test_a_missing_package_is_named_with_its_command(tmp_path, name):
    find = packages(tmp_path / "venv")

    def without(asked):
        if asked == name:
            raise metadata.PackageNotFoundError(asked)
        return find(asked)

    with pytest.raises(UserError, match=f"package {name}.*pip install"):
        onednn.place(tmp_path, without)


def test_files_deleted_from_an_installed_package_are_an_error(tmp_path):
    find = packages(tmp_path / "venv")
    (tmp_path / "venv" / "lib" / "libdnnl.so.2").unlink()
    with pytest.raises(UserError, match="force-reinstall"):
        onednn.place(tmp_path, find)


def test_a_cache_that_cannot_be_created_is_an_error(tmp_path):
    (tmp_path / ".cache").write_text("a file")
    with pytest.raises(UserError, match="JITTOR_HOME"):
        onednn.place(tmp_path, packages(tmp_path / "venv"))


@needs_kernels
def test_processes_that_start_together_place_it_once(tmp_path):
    code = ("import sys, pathlib; from jittor_lora.system import onednn; sys.stdin.read(1); "
            "print(onednn.place(pathlib.Path(sys.argv[1])))")
    children = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE) for _ in range(4)]
    answers = []
    for child in children:
        child.stdin.write(b"g")
        child.stdin.flush()
    for child in children:
        answers.append(child.communicate()[0].decode().strip())
    assert sorted(answers) == ["False"] * 3 + ["True"]
    assert onednn.is_placed(onednn.folder(tmp_path))
