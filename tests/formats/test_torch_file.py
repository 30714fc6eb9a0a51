"""PyTorch's files: read without torch, hostile ones refused. Against torch itself: tests/parity/test_torch_files.py."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import model_files
import torch_files as t
from jittor_lora.errors import UserError
from jittor_lora.formats import torch_pickle
from jittor_lora.formats.hugging_face import read_checkpoint
from jittor_lora.formats.torch_file import TorchFile

ARRAYS = {"a": np.arange(12, dtype="<f4").reshape(3, 4), "b": np.arange(5, dtype="<f2"), "c": np.ones((1, 2), "<f8")}


def written(folder, content: bytes):
    path = folder / "pytorch_model.bin"
    path.write_bytes(content)
    return path


def refused(folder, content: bytes) -> str:
    path = written(folder, content)
    began = time.process_time()
    with pytest.raises(UserError) as caught:
        TorchFile(path)
    assert time.process_time() - began < 5
    assert str(path) in str(caught.value) and len(str(caught.value)) < 2000
    return str(caught.value)


@pytest.mark.parametrize("save", [t.saved, t.saved_before_1_6])
def test_both_formats(tmp_path, save):
    file = TorchFile(written(tmp_path, save(ARRAYS)))
    assert list(file) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert file[name].dtype == np.float32 and file[name].shape == array.shape
        np.testing.assert_array_equal(file[name], array)


@pytest.mark.parametrize("name", ["state_dict", "model_state_dict"])
def test_a_state_dict_within_a_dictionary(tmp_path, name):
    program = t.program(b"}" + t.MARK + t.text("epoch") + t.number(3) + t.text(name) + t.state_dict(ARRAYS) + b"u")
    data = {str(i): array.tobytes() for i, array in enumerate(ARRAYS.values())}
    np.testing.assert_array_equal(TorchFile(written(tmp_path, t.archive(program, data)))["a"], ARRAYS["a"])


def test_two_state_dicts_are_ambiguous(tmp_path):
    inner = t.state_dict(ARRAYS)
    program = t.program(b"}" + t.MARK + t.text("state_dict") + inner + t.text("model_state_dict") + inner + b"u")
    data = {str(i): array.tobytes() for i, array in enumerate(ARRAYS.values())}
    assert "state_dict: expected a tensor" in refused(tmp_path, t.archive(program, data)).replace("'", "")


@given(shape=st.lists(st.integers(0, 4), max_size=4), order=st.randoms(use_true_random=False),
       steps=st.lists(st.integers(1, 3), min_size=4, max_size=4), offset=st.integers(0, 3))
def test_views_are_those_of_numpy(tmp_path_factory, shape, order, steps, offset):
    """Any order of dimensions, any step, any offset."""
    outer = [length * step for length, step in zip(shape, steps)]
    held = np.arange(offset + int(np.prod(outer)), dtype="<f4")
    view = held[offset:].reshape(outer)[tuple(slice(None, None, step) for step in steps[: len(shape)])]
    axes = list(range(len(shape)))
    order.shuffle(axes)
    view = view.transpose(axes)
    stored = t.tensor(t.storage("0", held.size), view.shape, [stride // 4 for stride in view.strides], offset)
    content = t.archive(t.program(b"}" + t.text("x") + stored + b"s"), {"0": held.tobytes()})
    path = written(tmp_path_factory.mktemp("views"), content)
    if view.size == 0 and held.size == 0:
        assert TorchFile(path)["x"].shape == view.shape
    else:
        np.testing.assert_array_equal(TorchFile(path)["x"], view)


# --- hostile ---------------------------------------------------------------------------------------------------------


class Reduced:
    def __init__(self, called, *arguments):
        self.reduction = called, arguments

    def __reduce__(self):
        return self.reduction


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_program_is_named_and_not_run(tmp_path, protocol, zipped):
    made = tmp_path / "made"
    content = pickle.dumps({"a": Reduced(os.system, f"touch {made}"), "b": Reduced(eval, f"open({str(made)!r}, 'w')"),
                            "c": Reduced(subprocess.Popen, ["touch", str(made)])}, protocol)
    message = refused(tmp_path, t.archive(content, {}) if zipped else content)
    if protocol >= 2:
        assert f"{os.system.__module__}.system" in message
        assert "eval" in message and "Popen" in message and "never run" in message
    assert not made.exists()


def test_nothing_is_imported_and_pickle_is_not_used(tmp_path):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    path = written(tmp_path, t.archive(t.program(t.name("evil", "x") + b")R"), {}))
    code = ("import sys\nfrom jittor_lora.formats.torch_file import TorchFile\n"
            "from jittor_lora.errors import UserError\n"
            f"try: TorchFile({str(path)!r})\nexcept UserError as error: print(error)\n"
            "assert not {'evil', 'torch'} & set(sys.modules)")
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0 and "found evil.x" in ran.stdout, ran


@pytest.mark.parametrize("opcode", [b"i", b"o", b"\x82\x01", b"\x92", b"P1\n", b"0", b"2", b"\x8f", b"\xff", b"I1\n"])
def test_other_opcodes(tmp_path, opcode):
    assert "opcode" in refused(tmp_path, t.archive(t.program(opcode), {}))


DEEP = 200_000
HOSTILE = {
    "lists within lists": (b"]" * DEEP + b"a" * (DEEP - 1), "dictionary of tensors"),
    "tuples within tuples": (b")" + b"\x85" * DEEP, "dictionary of tensors"),
    "dictionaries within dictionaries": ((b"}" + t.text("k")) * 50_000 + b"}" + b"s" * 50_000, "expected a tensor"),
    "doubled lists": (b"]q\x00" + b"](h\x00h\x00eq\x00" * 60, "takes more|unfinished"),
    "doubled tuples as keys": (b"}(" + b")q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"Nu", "neither texts nor numbers"),
    "a list of itself": (b"]q\x00h\x00a", "dictionary of tensors"),
    "more opcodes than allowed": (b"N" * (torch_pickle.MOST_OPCODES + 9), "opcodes"),
    "more bytes than allowed": (b"X" + struct.pack("<I", 60_000) + b"x" * (torch_pickle.LARGEST + 9), "bytes"),
    "a text longer than the file": (b"X\xff\xff\xff\xff", "text of 4,294,967,295 bytes"),
    "a text that is not UTF-8": (b"X\x01\x00\x00\x00\xff", "UTF-8"),
    "a name without an end": (b"c" + b"x" * 5000, "does not end"),
    "memory that was never stored": (b"j\xff\xff\xff\xff", "not stored"),
    "a mark that is not there": (b"t", "mark"),
    "an empty stack": (b"R", "takes more"),
    "a call of a number": (b"K\x01)R", "no name"),
    "a call of a storage's type": (t.name("torch", "FloatStorage") + b")R", "no name"),
    "a dictionary of many pairs": (t.name("collections", "OrderedDict") + b"]\x85R", "OrderedDict"),
    "a tensor of nothing": (t.name("torch._utils", "_rebuild_tensor_v2") + b")R", "storage"),
    "attributes of a tensor": (b"}" + t.text("a") + t.tensor(t.storage("0", 1), [1], [1]) + b"}bs", "attributes"),
    "a set": (t.name("builtins", "set") + b"]\x85R", "builtins.set"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_pickles(tmp_path, kind):
    program, expected = HOSTILE[kind]
    message = refused(tmp_path, t.archive(t.program(program), {"0": b"\0\0\0\0"}))
    assert any(word in message for word in expected.split("|")), message


def one(shape, strides, offset=0, count=12, held=None):
    program = b"}" + t.text("x") + t.tensor(t.storage("0", count), shape, strides, offset) + b"s"
    return t.archive(t.program(program), {"0": bytes(4 * count if held is None else held)})


@pytest.mark.parametrize("content, expected", [
    (one([3, 5], [5, 1]), "ends after its storage"),
    (one([12], [1], offset=1), "ends after its storage"),
    (one([2], [1 << 62]), "ends after its storage"),
    (one([1 << 62, 1 << 62], [0, 0]), "overlap"),
    (one([6, 6], [1, 1]), "overlap"),
    (one([3, 4], [3, 1]), "overlap"),
    (one([-1, 12], [12, 1]), "whole numbers"),
    (one([12], [-1]), "whole numbers"),
    (one([12], [1], offset=-4), "whole numbers"),
    (one([1 << 70], [1]), "whole numbers"),
    (one([12], [1, 1]), "whole numbers"),
    (one([1] * 33, [1] * 33), "whole numbers"),
    (one([12], [1], held=40), "40 bytes of the storage"),
    (one([12], [1], count=1 << 61, held=48), "48 bytes of the storage"),
], ids=range(14))
def test_tensors_that_do_not_fit_their_storage(tmp_path, content, expected):
    assert expected in refused(tmp_path, content)


def test_many_names_for_one_storage(tmp_path):
    """A file of a few bytes must not stand for many times as much."""
    stored = t.tensor(t.storage("0", 1000), [1000], [1])
    items = b"".join(t.text(str(i)) + stored for i in range(200))
    content = t.archive(t.program(b"}" + t.MARK + items + b"u"), {"0": bytes(4000)})
    assert "which no weights do" in refused(tmp_path, content)


def test_two_types_of_one_storage(tmp_path):
    program = b"}" + t.MARK + b"".join(t.text(kind) + t.tensor(t.storage("0", 2, kind), [2], [1])
                                       for kind in ("FloatStorage", "IntStorage")) + b"u"
    assert "two different storages" in refused(tmp_path, t.archive(t.program(program), {"0": bytes(8)}))


# --- zip archives ----------------------------------------------------------------------------------------------------


def patched(content: bytes, at: int, value: bytes) -> bytes:
    return content[:at] + value + content[at + len(value) :]


SAVED = t.saved(ARRAYS)
DIRECTORY, END = SAVED.find(b"PK\x01\x02"), SAVED.rfind(b"PK\x05\x06")


def twice() -> bytes:
    """The member data/1 under the name of data/0."""
    return SAVED.replace(b"archive/data/1", b"archive/data/0")


@pytest.mark.parametrize("content, expected", [
    (t.saved(ARRAYS, method=zipfile.ZIP_DEFLATED), "compressed"),
    (t.saved(ARRAYS, method=zipfile.ZIP_LZMA), "compressed"),
    (t.saved({"a": np.zeros(10_000_000, "<f4")}, method=zipfile.ZIP_DEFLATED), "compressed"),  # 40 MB in 40 kB
    (t.saved(ARRAYS, order=b"big"), "byte order"),
    (patched(SAVED, DIRECTORY + 8, b"\x01"), "encrypted"),
    (patched(SAVED, DIRECTORY + 42, b"\xff\xff\xff\x7f"), "no header"),
    (patched(SAVED, DIRECTORY + 42, b"\xff\xff\xff\xff"), "no header"),
    (patched(SAVED, DIRECTORY + 20, b"\xff\xff\xff\x00" * 2), "ending after the file"),
    (patched(SAVED, END + 10, b"\xfe\xff"), "damaged directory"),
    (patched(SAVED, END + 12, b"\xfe\xff\xff\x7f"), "members"),
    (patched(SAVED, END + 16, b"\xfe\xff\xff\x7f"), "outside the file"),
    (SAVED[:END], "without its end"),
    (SAVED[: len(SAVED) // 2], "without its end"),
    (twice(), "twice"),
    (SAVED.replace(b"archive/data/1", b"archive/data/7"), "no data of the storage"),
    (SAVED.replace(b"data.pkl", b"code.pkl"), "data.pkl"),
    (patched(SAVED, SAVED.find(b"\x80\x02") + 3, b"!"), "checksum"),
    (t.saved(ARRAYS) + bytes(70_000), "without its end"),
], ids=range(18))
def test_damaged_and_hostile_archives(tmp_path, content, expected):
    assert expected in refused(tmp_path, content)


def test_overlapping_members(tmp_path):
    """Many members of the same bytes: a small file must not stand for a large one."""
    at = SAVED.find(b"PK\x01\x02", SAVED.find(b"archive/data/1", DIRECTORY) - 60)
    header = SAVED.find(b"PK\x03\x04")
    size = len(SAVED) - header - 30 - len("archive/data.pkl")
    content = patched(SAVED, DIRECTORY + 20, struct.pack("<II", size, size))
    assert at > 0 and "overlapping" in refused(tmp_path, content)


def test_other_files(tmp_path):
    assert "empty file" in refused(tmp_path, b"")
    assert "web page" in refused(tmp_path, b"<html>")
    assert "Git LFS" in refused(tmp_path, b"version https://git-lfs.github.com/spec/v1\n")
    assert "torch.save did not write" in refused(tmp_path, pickle.dumps([1, 2], 2))


@pytest.mark.parametrize("at", range(1, 400, 7))
def test_the_old_format_cut_anywhere(tmp_path, at):
    content = t.saved_before_1_6(ARRAYS)
    refused(tmp_path, content[: len(content) * at // 400])


# --- base models -----------------------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path):
    """A tiny GPT-2 whose weights are in pytorch_model.bin."""
    tensors = model_files.make_tensors(model_files.GPT2)
    model_files.make_folder(tmp_path / "base", model_files.GPT2, tensors)
    (tmp_path / "base" / "model.safetensors").unlink()
    (tmp_path / "base" / "pytorch_model.bin").write_bytes(t.saved(tensors))
    return tmp_path / "base", tensors


def test_a_base_with_pytorch_weights(base):
    folder, tensors = base
    checkpoint = read_checkpoint(folder)
    for name, array in tensors.items():
        np.testing.assert_array_equal(checkpoint.tensors[name], array)
    assert any("pytorch_model.bin" in note for note in checkpoint.notes)


def test_safetensors_are_preferred(base):
    folder, tensors = base
    model_files.make_folder(folder, model_files.GPT2, {name: array + 1 for name, array in tensors.items()})
    checkpoint = read_checkpoint(folder)
    name = next(iter(tensors))
    np.testing.assert_array_equal(checkpoint.tensors[name], tensors[name] + 1)
    assert not checkpoint.notes


def test_shards(base):
    folder, tensors = base
    (folder / "pytorch_model.bin").unlink()
    names = list(tensors)
    parts = {"pytorch_model-1-of-2.bin": names[::2], "pytorch_model-2-of-2.bin": names[1::2]}
    for shard, held in parts.items():
        (folder / shard).write_bytes(t.saved_before_1_6({name: tensors[name] for name in held}))
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {name: shard for shard, held in parts.items() for name in held}}))
    checkpoint = read_checkpoint(folder)
    for name, array in tensors.items():
        np.testing.assert_array_equal(checkpoint.tensors[name], array)
    index.write_text(json.dumps({"weight_map": {"x": "../pytorch_model.bin"}}))
    with pytest.raises(UserError, match="same folder"):
        read_checkpoint(folder)


def test_a_refused_base_says_how_to_convert_it(base):
    folder, _ = base
    (folder / "pytorch_model.bin").write_bytes(t.archive(t.program(t.name("posix", "system") + b")R"), {}))
    with pytest.raises(UserError, match="(?s)found posix.system.*python -c"):
        read_checkpoint(folder)
