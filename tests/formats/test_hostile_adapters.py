"""Malicious adapter files: each is refused within a second, naming the file; nothing is written or run."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tiny
from jittor_lora.errors import UserError
from jittor_lora.formats.adapter_folder import read_adapter_folder
from jittor_lora.formats.peft import CONFIG_FILE, WEIGHTS_FILE, load_adapter, save_adapter
from jittor_lora.formats.reference_npz import read_reference_npz
from jittor_lora.lora.config import DEFAULT_TARGETS, LoraConfig
from jittor_lora.lora.inject import inject
from jittor_lora.model.load import build_model
from jittor_lora.session import Session

FIRST = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"
SECONDS = 1.0


def network():
    return build_model(tiny.config(tiny.GPT2), tiny.tensors(tiny.GPT2))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    adapter = inject(network(), LoraConfig(r=2, target_modules=DEFAULT_TARGETS["gpt2"]))
    adapter.load(tiny.adapter_arrays({name: tuple(p.shape) for name, p in adapter.parameters().items()}))
    save_adapter(folder, adapter, "some/base", "gpt2")
    return folder


@pytest.fixture(scope="module")
def model():
    """One for all refusals: they leave it unchanged."""
    return network()


@pytest.fixture
def folder(original, tmp_path):
    copy = tmp_path / "adapter"
    copy.mkdir()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        (copy / name).write_bytes((original / name).read_bytes())
    return copy


def contents(folder: Path) -> dict[str, object]:
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*")}


def assert_refused(read, folder: Path, *words: str) -> None:
    before, began = contents(folder.parent), time.perf_counter()
    with pytest.raises(UserError) as caught:
        read()
    assert time.perf_counter() - began < SECONDS
    message = str(caught.value)
    assert str(folder) in message and len(message) < 5000
    assert all(character.isprintable() or character == "\n" for character in message)
    for word in words:
        assert word in message
    assert contents(folder.parent) == before


def assert_both_refuse(folder: Path, model, *words: str) -> None:
    """The reader of files only, and the one that loads them into a network."""
    assert_refused(lambda: read_adapter_folder(folder), folder, *words)
    assert_refused(lambda: load_adapter(folder, model), folder, *words)


# --- the weights: bytes ----------------------------------------------------------------------------------------------


def safetensors(header: object, data: bytes = b"\0" * 64, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(2, 4), offsets=(0, 32)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


class Evil:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def million_keys() -> bytes:
    return ("{" + ",".join(f'"k{i}":{{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}' for i in range(10**6))
            + "}").encode()


BYTES = {
    "empty": (b"", "expected a safetensors file"),
    "seven bytes": (b"\0" * 7, "only 7 bytes"),
    "header longer than the file": (safetensors({}, length=1000), "truncated"),
    "header of 2^63 bytes": (safetensors({}, length=1 << 63), "not a safetensors file"),
    "header of zeros": (safetensors(b"\0" * 64), "not JSON"),
    "header not UTF-8": (safetensors(b'{"\xff": 1}'), "not JSON"),
    "header a list": (safetensors([]), "not a JSON object"),
    "header nested deeply": (safetensors(b"[" * 10**6), "not JSON"),
    "key twice": (safetensors(json.dumps({FIRST: entry()})[:-1].encode() + b"," + json.dumps({FIRST: entry()})[1:]
                              .encode()), "twice"),
    "a million keys": (safetensors(million_keys()), "header: expected at most"),
    "no tensors": (safetensors({}), "holds no arrays"),
    "entry a number": (safetensors({FIRST: 3}), FIRST),
    "unknown dtype": (safetensors({FIRST: entry("F31")}), FIRST),
    "whole numbers": (safetensors({FIRST: entry("I32")}), "found I32"),
    "shape negative": (safetensors({FIRST: entry(shape=(-2, -4))}), FIRST),
    "shape true": (safetensors({FIRST: entry(shape=(True, 8))}), FIRST),
    "shape beyond the bytes": (safetensors({FIRST: entry(shape=(1 << 40, 1 << 40))}), FIRST),
    "shape larger than a number": (safetensors({FIRST: entry(shape=(10**30, 1))}), FIRST),
    "no rows": (safetensors({FIRST: entry(shape=(0, 24), offsets=(0, 0))}), "shape (0, 24)"),
    "no dimensions": (safetensors({FIRST: entry(shape=(), offsets=(0, 4))}), "shape ()"),
    "three dimensions": (safetensors({FIRST: entry(shape=(2, 2, 2))}), "shape (2, 2, 2)"),
    "offsets turned round": (safetensors({FIRST: entry(offsets=(32, 0))}), FIRST),
    "offsets beyond the file": (safetensors({FIRST: entry(offsets=(1 << 20, (1 << 20) + 32))}), "truncated"),
    "offsets in the header": (safetensors({FIRST: entry(offsets=(-32, 0))}), FIRST),
    "overlap": (safetensors({FIRST: entry(), FIRST.replace("_A", "_B"): entry(offsets=(16, 48))}), "overlaps"),
    "metadata a list": (safetensors({"__metadata__": [1], FIRST: entry()}), "__metadata__"),
    "metadata of numbers": (safetensors({"__metadata__": {"a": 1}, FIRST: entry()}), "__metadata__"),
    "a web page": (b"<!DOCTYPE html><html></html>" * 9, "a web page"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
}


@pytest.mark.parametrize("name", BYTES)
def test_bytes(folder, model, name):
    content, word = BYTES[name]
    (folder / WEIGHTS_FILE).write_bytes(content)
    assert_both_refuse(folder, model, WEIGHTS_FILE, word)


def test_a_file_cut_off_anywhere(folder, model):
    whole = (folder / WEIGHTS_FILE).read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 60)):
        (folder / WEIGHTS_FILE).write_bytes(whole[:length])
        assert_both_refuse(folder, model, WEIGHTS_FILE)


def test_pickles_are_not_run(folder, model, tmp_path):
    marker = tmp_path / "executed"
    for content in (pickle.dumps(Evil(marker)), pickle.dumps({FIRST: Evil(marker)}, protocol=0)):
        (folder / WEIGHTS_FILE).write_bytes(content)
        assert_both_refuse(folder, model, WEIGHTS_FILE, "safetensors file")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writing:
        writing.writestr("archive/data.pkl", pickle.dumps(Evil(marker)))
    (folder / WEIGHTS_FILE).write_bytes(archive.getvalue())
    assert_both_refuse(folder, model, WEIGHTS_FILE, "PyTorch")
    (folder / WEIGHTS_FILE).rename(folder / "adapter_model.bin")
    assert_both_refuse(folder, model, "adapter_model.bin: expected PyTorch weights; found", "never run")
    assert not marker.exists()


# --- the weights: tensors --------------------------------------------------------------------------------------------


def value(number):
    return lambda arrays: arrays[FIRST].__setitem__((1, 3), number)


def named(key, shape=(2, 24)):
    return lambda arrays: arrays.__setitem__(key, np.ones(shape, np.float32))


TENSORS = {
    "NaN": (value(np.nan), FIRST, "not finite"),
    "infinite": (value(-np.inf), FIRST, "not finite"),
    "a signalling NaN": (value(np.array([0x7F800001], np.uint32).view(np.float32)[0]), FIRST, "not finite"),
    "a key of a path": (named("base_model.model.../../../etc/passwd.lora_A.weight"), "etc/passwd", "name"),
    "a key without the prefix": (named("/etc/passwd"), "etc/passwd", "name"),
    "an absolute key": (named("lora_A.weight"), "lora_A.weight", "base_model.model."),
    "a key with an escape sequence": (named("base_model.model.\x1b]0;gotcha\x07.lora_A.weight"), "\\x1b", "name"),
    "a key with a zero byte": (named("base_model.model.a\0b.lora_A.weight"), "\\x00", "name"),
    "a long key": (named(f"base_model.model.{'a' * 100_000}.lora_A.weight"), "aaa", "name"),
    "half of a pair": (lambda arrays: arrays.pop(FIRST), "transformer.h.0.attn.c_attn", "lora_A"),
    "another rank": (named(FIRST, (3, 24)), WEIGHTS_FILE, "3"),
    "an absurd rank": (named(FIRST, (5000, 24)), WEIGHTS_FILE, "5000"),
    "a vector": (named(FIRST, (48,)), "c_attn", "(48,)"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors(folder, model, name):
    change, *words = TENSORS[name]
    arrays = {key: array.copy() for key, array in load_file(folder / WEIGHTS_FILE).items()}
    change(arrays)
    save_file(arrays, folder / WEIGHTS_FILE)
    assert_both_refuse(folder, model, *words)


# --- the settings ----------------------------------------------------------------------------------------------------

TEXTS = {
    "empty": b"",
    "not JSON": b"r: 8",
    "not UTF-8": b'{"r": "\xff\xfe"}',
    "a list": b"[]",
    "a number": b"3",
    "nested deeply": b'{"r":' + b"[" * 10**5,
    "a number of a million digits": b'{"peft_type": "LORA", "r": ' + b"9" * 10**6 + b"}",
    "a key twice": b'{"peft_type": "LORA", "r": 2, "r": 4000}',
    "a million keys": b"{" + b",".join(b'"k%d":1' % i for i in range(10**6)) + b"}",
    "a web page": b"<html></html>",
    "a pickle": pickle.dumps({"peft_type": "LORA"}),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts_that_are_not_settings(folder, model, name):
    (folder / CONFIG_FILE).write_bytes(TEXTS[name])
    assert_both_refuse(folder, model, CONFIG_FILE)


FIELDS = [
    ("peft_type", "IA3"), ("peft_type", ["LORA"]), ("r", "8"), ("r", 2.0), ("r", True), ("r", -1), ("r", 0),
    ("r", 10**6), ("r", 10**400), ("r", None), ("lora_alpha", "16"), ("lora_alpha", -16), ("lora_alpha", 0),
    ("lora_alpha", float("nan")), ("lora_alpha", float("inf")), ("lora_alpha", 10**400), ("lora_alpha", 1e300),
    ("lora_alpha", [16]), ("lora_dropout", -0.1), ("lora_dropout", 1), ("lora_dropout", "0"),
    ("target_modules", None), ("target_modules", []), ("target_modules", ""), ("target_modules", {"c_attn": 1}),
    ("target_modules", ["c_attn", 3]),
    ("target_modules", ["\x1b[2J"]), ("target_modules", ["x" * 10**5]), ("target_modules", ["a"] * 10**5),
    ("target_modules", "("), ("target_modules", r"(.+)+!"), ("target_modules", r"(\w|\w\w)*x"),
    ("target_modules", ".*" * 30 + "x"), ("target_modules", "(" * 5000 + ")" * 5000),
    ("exclude_modules", 3), ("exclude_modules", r"(a*)*b"), ("fan_in_fan_out", "yes"), ("fan_in_fan_out", 1),
    ("bias", "everything"), ("bias", ["all"]), ("use_rslora", "no"), ("use_dora", 1), ("modules_to_save", "lm_head"),
    ("modules_to_save", [1]), ("init_lora_weights", 3), ("init_lora_weights", {"a": 1}), ("layers_to_transform", "0"),
    ("layers_to_transform", [-1]), ("layers_to_transform", [10**9]), ("layers_to_transform", [True]),
    ("layers_pattern", 3), ("layers_pattern", r"(a*)*b"), ("rank_pattern", []), ("rank_pattern", {"c_attn": "2"}),
    ("rank_pattern", {"c_attn": 10**6}),
    ("rank_pattern", {r"(.*)*x": 2}), ("alpha_pattern", {"c_attn": -1}), ("alpha_pattern", {"(": 1}),
    ("base_model_name_or_path", 3), ("base_model_name_or_path", ["gpt2"]), ("base_model_name_or_path", "a\0b"),
    ("base_model_name_or_path", "x\n\x1b[31mfree money"), ("base_model_name_or_path", "a/" * 10**5),
    ("revision", {"a": 1}), ("task_type", 7), ("peft_version", [1]),
]


@pytest.mark.parametrize("name, bad", FIELDS, ids=[f"{name} {str(bad)[:20]!r}" for name, bad in FIELDS])
def test_fields(folder, model, name, bad):
    settings = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**settings, name: bad}))
    assert_both_refuse(folder, model, CONFIG_FILE, name)


def test_all_wrong_fields_are_in_one_message(folder, model):
    settings = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**settings, "r": "8", "lora_alpha": -1, "use_dora": 3, "bias": 0}))
    assert_both_refuse(folder, model, "r: ", "lora_alpha: ", "use_dora: ", "bias: ")


def test_a_lie_about_fan_in_fan_out_changes_nothing(folder):
    """The layout is known from the base."""
    def arrays():
        return {name: p.numpy().tobytes() for name, p in load_adapter(folder, network()).parameters().items()}

    expected = arrays()
    settings = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**settings, "fan_in_fan_out": not settings["fan_in_fan_out"]}))
    assert arrays() == expected


# --- where the files lie ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_links_out_of_the_folder(folder, model, tmp_path, name):
    secret = tmp_path / "secret"
    (folder / name).rename(secret)
    for target in (secret, Path("../secret")):
        (folder / name).symlink_to(target)
        assert_both_refuse(folder, model, name, "a link that leads out of its folder")
        (folder / name).unlink()


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_paths_that_are_not_files(folder, model, name):
    (folder / name).unlink()
    for make in (lambda: (folder / name).symlink_to("/dev/zero"), lambda: os.mkfifo(folder / name),
                 lambda: (folder / name).symlink_to(name), lambda: (folder / name).symlink_to("nowhere"),
                 lambda: (folder / name).mkdir()):
        make()
        assert_both_refuse(folder, model, name)
        (folder / name).rmdir() if (folder / name).is_dir() else (folder / name).unlink()


def test_links_within_the_folder_and_into_the_hubs_cache_are_followed(folder, model, tmp_path):
    (folder / CONFIG_FILE).rename(folder / "settings")
    (folder / CONFIG_FILE).symlink_to("settings")
    assert read_adapter_folder(folder).factors
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0123", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        (blobs / name[:12]).write_bytes((folder / name).read_bytes())
        (snapshot / name).symlink_to(Path("../../blobs") / name[:12])
    assert read_adapter_folder(snapshot).factors


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/b", "/a", "a\0", "a\n", "a b"])
def test_adapter_names_that_cannot_be_folders(name, tmp_path):
    session = Session(network(), None, None, None)

    def save():
        session.add_adapter(LoraConfig(r=2, target_modules=("c_fc",)), name)
        session.save_adapters(tmp_path / "saved")

    with pytest.raises(UserError, match="(?s)adapter .*expected a name"):
        save()
    assert not list(tmp_path.iterdir())


# --- .npz ------------------------------------------------------------------------------------------------------------

GOOD = "transformer_h.0.mlp.c_fc.lora_{}.weight"


def npz(members: dict[str, bytes], **options) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", **options) as writing:
        for name, content in members.items():
            writing.writestr(name, content)
    return archive.getvalue()


def npy(array: np.ndarray, pickled: bool = False) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=pickled)
    return stream.getvalue()


def header(text: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + data


A, B = np.ones((2, 4), np.float32), np.ones((8, 2), np.float32)
ZIPPED = {"compression": zipfile.ZIP_DEFLATED}
ARCHIVES = {
    "empty": b"",
    "text": b"hello" * 100,
    "no arrays": npz({}),
    "not an array": npz({"a.txt": b"x"}),
    "a path": npz({"../../etc/passwd.npy": npy(A)}),
    "one half": npz({GOOD.format("A") + ".npy": npy(A)}),
    "ranks that differ": npz({GOOD.format("A") + ".npy": npy(A), GOOD.format("B") + ".npy": npy(B.T)}),
    "a bomb": npz({GOOD.format("A") + ".npy": b"\0" * (100 << 20)}, **ZIPPED),
    "many members": npz({f"{i}.npy": b"" for i in range(20_000)}),
    "whole numbers": npz({GOOD.format("A") + ".npy": npy(np.ones((2, 4), "i4"))}),
    "NaN": npz({GOOD.format("A") + ".npy": npy(A * np.nan), GOOD.format("B") + ".npy": npy(B)}),
    "a claim of size": npz({GOOD.format("A") + ".npy":
                            header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000)}\n")}),
    "a negative size": npz({GOOD.format("A") + ".npy":
                            header("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -4)}\n", b"\0" * 32)}),
    "a header of code": npz({GOOD.format("A") + ".npy": header("__import__('os').mkdir('executed')\n")}),
    "a header too long": npz({GOOD.format("A") + ".npy": header("[" * 60_000)}),
    "cut off": npz({GOOD.format("A") + ".npy": npy(A), GOOD.format("B") + ".npy": npy(B)})[:-30],
    "damaged": npz({GOOD.format("A") + ".npy": npy(A)}).replace(npy(A)[-16:], b"\1" * 16),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives(tmp_path, name):
    path = tmp_path / "lora.npz"
    path.write_bytes(ARCHIVES[name])
    assert_refused(lambda: read_reference_npz(path), path)


def test_pickled_arrays_are_not_run(tmp_path):
    path, marker = tmp_path / "lora.npz", tmp_path / "executed"
    objects = np.array([[Evil(marker)]], object)
    path.write_bytes(npz({GOOD.format("A") + ".npy": npy(objects, pickled=True)}))
    assert_refused(lambda: read_reference_npz(path), path, "only a pickle")
    assert not marker.exists()
