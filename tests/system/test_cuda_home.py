import json
import os
import subprocess

import pytest

from cuda_toolkits import HEADERS, driver, files, find, toolkit
from jittor_lora.errors import UserError
from jittor_lora.system import cuda, cuda_home


@pytest.fixture(autouse=True)
def nothing_of_this_machine(monkeypatch, tmp_path):
    for name in ("SYSTEM_HEADERS", "SYSTEM_LIBRARIES"):
        monkeypatch.setattr(cuda, name, tmp_path / "system" / name)
    monkeypatch.setattr(cuda_home, "SYSTEM_HEADERS", tmp_path / "system" / "SYSTEM_HEADERS")
    monkeypatch.setattr(cuda.machine, "version_of", lambda program: "12.2.0")
    monkeypatch.setattr(cuda, "_packages", list)


def flags(tmp_path, release, *capabilities):
    return cuda_home.extra_flags(find(toolkit(tmp_path / release, release), having=driver((13, 0), *capabilities)))


@pytest.mark.parametrize("release, capability, expected", [
    ("11.8", 7.5, []), ("11.8", 8.6, []), ("11.8", 8.9, []), ("11.8", 9.0, []),
    ("11.8", 12.0, ["-gencode=arch=compute_90,code=compute_90"]),  # PTX for an RTX 50, which 11.8 does not know
    ("12.4", 12.0, ["-gencode=arch=compute_90,code=compute_90"]),
    ("12.8", 12.0, ["-gencode=arch=compute_120,code=sm_120"]),
    ("12.8", 10.3, ["-gencode=arch=compute_101,code=compute_101"]),
    ("13.0", 7.5, ["-std=c++17"]), ("13.0", 8.9, ["-std=c++17"]), ("13.0", 9.0, ["-std=c++17"]),
    ("13.0", 10.0, ["-std=c++17", "-gencode=arch=compute_100,code=sm_100"]),
    ("13.0", 12.0, ["-std=c++17", "-gencode=arch=compute_120,code=sm_120"]),
])
def test_flags_for_each_release_and_card(tmp_path, release, capability, expected):
    assert flags(tmp_path, release, capability) == expected


def test_two_cards_of_one_kind_and_one_of_another(tmp_path):
    assert flags(tmp_path, "13.0", 12.0, 8.6, 12.0) == ["-std=c++17", "-gencode=arch=compute_120,code=sm_120"]


def test_the_folder_has_what_jittor_looks_for(tmp_path):
    nvcc = toolkit(tmp_path / "cuda", "13.0", folder="lib")
    (tmp_path / "cuda" / "lib" / "libcublas.so.13").touch()
    home = cuda_home.place(tmp_path, find(nvcc))
    for name in ("include/cublas.h", "include/crt/host_config.h", "lib64/libcudart.so", "lib64/libcublas.so.13"):
        assert (home / name).exists(), name
    assert "MINABS_32F" in (home / "include" / "npp.h").read_text()
    assert "computeMode" in (home / "include" / "jittor_cuda13.h").read_text()
    said = subprocess.run([home / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    assert "release 13.0" in said
    assert not list(home.parent.glob(".cuda-*"))


def test_before_cuda_13_and_with_npp_nothing_is_mended(tmp_path):
    nvcc = toolkit(tmp_path / "cuda", "12.4", headers=(*HEADERS, "npp.h"))
    home = cuda_home.place(tmp_path, find(nvcc))
    assert (home / "include" / "npp.h").is_symlink()
    assert not (home / "include" / "jittor_cuda13.h").exists()
    assert cuda_home.at_import({"nvcc_path": str(home / "bin" / "nvcc"), "cache_name": "x"}) == {
        "cache_name": f"x_{home.name}"}


def test_the_same_cuda_is_placed_once_and_found_again_by_a_child_process(tmp_path):
    found = find(toolkit(tmp_path / "cuda"))
    home = cuda_home.place(tmp_path, found)
    before = os.stat(home).st_ino
    again = find(home / "bin" / "nvcc")  # what a child process inherits as nvcc_path
    assert again == found
    assert cuda_home.place(tmp_path, again) == home
    assert os.stat(home).st_ino == before


@pytest.mark.parametrize("change", ["card", "library", "header"])
def test_another_card_or_part_is_another_folder(tmp_path, change):
    nvcc = toolkit(tmp_path / "cuda")
    before = cuda_home.place(tmp_path, find(nvcc))
    having = driver((13, 0), 7.5 if change == "card" else 8.6)
    if change == "library":
        files(tmp_path / "cuda" / "lib64", ["libcudnn.so"])
    if change == "header":
        files(tmp_path / "cuda" / "targets" / "x86_64-linux" / "include", HEADERS)
    assert cuda_home.place(tmp_path, find(nvcc, having=having)) != before


def test_variables_of_the_import(tmp_path):
    home = cuda_home.place(tmp_path, find(toolkit(tmp_path / "cuda", "13.0")))
    chosen = cuda_home.at_import({"nvcc_path": str(home / "bin" / "nvcc"), "cache_name": "mine", "cc_flags": "-DMINE"})
    assert chosen["cache_name"] == f"mine_{home.name}"
    assert "-DMINE" in chosen["cc_flags"]
    assert f"-include {home}/include/jittor_cuda13.h" in chosen["cc_flags"]
    assert cuda_home.at_import({"nvcc_path": "", "cache_name": "mine"}) == {}


def test_a_home_that_jittor_cannot_quote(tmp_path):
    with pytest.raises(UserError, match="JITTOR_HOME"):
        cuda_home.place(tmp_path / "a b", find(toolkit(tmp_path / "cuda")))


def test_a_home_that_cannot_be_written(tmp_path):
    (tmp_path / ".cache").touch()
    with pytest.raises(UserError, match="cannot be prepared"):
        cuda_home.place(tmp_path, find(toolkit(tmp_path / "cuda")))


def test_the_note_names_the_parts(tmp_path):
    nvcc = toolkit(tmp_path / "cuda")
    note = json.loads((cuda_home.place(tmp_path, find(nvcc)) / cuda.NOTE).read_text())
    assert note["nvcc"] == str(nvcc)
    assert note["cards"] == [86]
