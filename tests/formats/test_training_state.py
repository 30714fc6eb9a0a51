from __future__ import annotations

import hashlib
import json
import random
import weakref

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jittor_lora.errors import UserError
from jittor_lora.formats.safetensors_file import SafetensorsFile
from jittor_lora.formats.training_state import (
    Copies,
    TrainingState,
    checkpoints,
    newest_state,
    read_state,
    write_state,
)


def state(step):
    draw = np.random.RandomState(step)
    return TrainingState({f"{kind}.h.0.lora_A": draw.standard_normal((3, 7)).astype(np.float32)
                          for kind in ("adapter", "first", "second")},
                         {"step": step, "best_loss": 0.1 + 0.2, "text": "é", "nothing": None, "list": [1, 2.5]})


def same(a, b):
    assert a.values == b.values
    assert a.arrays.keys() == b.arrays.keys()
    assert all(a.arrays[name].tobytes() == b.arrays[name].tobytes() for name in a.arrays)


def test_a_written_state_is_read_back(tmp_path):
    path = write_state(tmp_path, 12, state(12), keep=2)
    assert path == tmp_path / "step-00000012.safetensors"
    same(read_state(path), state(12))
    found, newest, skipped = newest_state(tmp_path)
    assert (found, skipped) == (path, [])
    same(newest, state(12))


def test_arrays_read_belong_to_the_reader(tmp_path):
    path = write_state(tmp_path, 1, state(1), keep=1)
    arrays = read_state(path).arrays
    path.unlink()
    for array in arrays.values():
        array += 1


def test_copies_are_written_one_at_a_time(tmp_path):
    class Tracked:
        """Stands in for a Jittor array; counts its copies."""
        alive = most = 0

        def numpy(self):
            copy = np.ones((3, 7), np.float32)
            Tracked.alive += 1
            Tracked.most = max(Tracked.most, Tracked.alive)
            weakref.finalize(copy, self.freed)
            return copy

        @staticmethod
        def freed():
            Tracked.alive -= 1

    arrays = {"initial.a": np.zeros(2, np.float32), **{f"first.{i}": Tracked() for i in range(9)}}
    path = write_state(tmp_path, 1, TrainingState(Copies(arrays), {}), keep=1)
    assert Tracked.most <= 2  # one is freed once the next exists
    found = read_state(path).arrays
    assert list(found) == list(arrays)
    assert found["first.8"].tobytes() == np.ones((3, 7), np.float32).tobytes()


def test_the_newest_are_kept(tmp_path):
    for step in (5, 10, 9999, 10000):
        write_state(tmp_path, step, state(step), keep=2)
    assert [step for step, _ in checkpoints(tmp_path)] == [9999, 10000]
    write_state(tmp_path, 10001, state(1), keep=1)
    assert [step for step, _ in checkpoints(tmp_path)] == [10001]


def test_other_files_are_left_alone(tmp_path):
    others = ("step-5.safetensors", "step-00000003.safetensors.tmp", "notes.txt", ".step-00000001.safetensors.x.tmp")
    for name in others:
        (tmp_path / name).write_text("mine")
    write_state(tmp_path, 7, state(7), keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "step-00000007.safetensors"])


def test_a_new_state_is_never_removed_in_favour_of_a_damaged_later_one(tmp_path):
    write_state(tmp_path, 100, state(100), keep=1)
    (tmp_path / "step-00000200.safetensors").write_bytes(b"damaged")
    write_state(tmp_path, 150, state(150), keep=1)
    path, found, skipped = newest_state(tmp_path)
    assert path.name == "step-00000150.safetensors"
    assert len(skipped) == 1 and "step-00000200" in skipped[0]
    same(found, state(150))


def refused(path, older):
    """The damaged newest checkpoint is skipped in favour of the previous, intact one."""
    with pytest.raises(UserError, match="step-00000002"):
        read_state(path)
    found, whole, skipped = newest_state(path.parent)
    assert found.name == "step-00000001.safetensors"
    assert len(skipped) == 1 and "step-00000002" in skipped[0]
    same(whole, older)


@pytest.fixture
def newest(tmp_path):
    """A checkpoint of a few hundred bytes, after an older one."""
    write_state(tmp_path, 1, state(1), keep=9)
    small = TrainingState({"adapter.x": np.arange(5, dtype=np.float32), "first.x": np.ones(2, np.float32)}, {"step": 2})
    return write_state(tmp_path, 2, small, keep=9)


def test_a_truncated_file_is_skipped_wherever_it_ends(newest):
    whole = newest.read_bytes()
    for length in range(len(whole)):
        newest.write_bytes(whole[:length])
        refused(newest, state(1))


def test_a_file_renamed_before_its_content_was_flushed_is_skipped(newest):
    """After a power cut a file may have its full length, with zeros for what was not written yet."""
    whole = newest.read_bytes()
    for start in range(len(whole) - 1):  # the last byte is a zero
        newest.write_bytes(whole[:start] + bytes(len(whole) - start))
        refused(newest, state(1))
    newest.write_bytes(whole + b"\0")
    refused(newest, state(1))


def test_every_changed_byte_is_noticed(newest):
    whole = bytearray(newest.read_bytes())
    draw = random.Random(0)
    for at in range(len(whole)):
        changed = whole.copy()
        changed[at] ^= 1 << draw.randrange(8)
        newest.write_bytes(changed)
        refused(newest, state(1))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_not_written(tmp_path, value):
    write_state(tmp_path, 1, state(1), keep=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    wrong = state(2)
    wrong.arrays["second.h.0.lora_A"][2, 3] = value
    with pytest.raises(UserError, match="step-00000002.safetensors: not written") as caught:
        write_state(tmp_path, 2, wrong, keep=1)
    assert "second.h.0.lora_A: 1 " in str(caught.value) and "adapter.h.0" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_checkpoint_with_values_that_are_not_finite_is_skipped(tmp_path):
    write_state(tmp_path, 1, state(1), keep=9)
    path, (arrays, values) = tmp_path / "step-00000002.safetensors", state(2)
    arrays["first.h.0.lora_A"][0, 0] = np.nan
    save_file(arrays, path, {"jittor_lora_state": "3", "values": json.dumps(values), "sha256": "0" * 64})
    summed(path)
    refused(path, state(1))
    with pytest.raises(UserError, match=r"not finite in 1 arrays, the first first\.h\.0\.lora_A \(1 NaN of 21 numbers"):
        read_state(path)


def test_if_none_can_be_read_all_are_named(tmp_path):
    for step in (1, 2):
        (tmp_path / f"step-{step:08d}.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError) as caught:
        newest_state(tmp_path)
    assert "step-00000001" in str(caught.value) and "step-00000002" in str(caught.value)


def test_there_may_be_no_checkpoint(tmp_path):
    assert newest_state(tmp_path) is None
    assert newest_state(tmp_path / "nowhere") is None


def summed(path):
    """The file with its checksum in place of the zeros."""
    content = path.read_bytes()
    path.write_bytes(content.replace(b"0" * 64, hashlib.sha256(content).hexdigest().encode()))


@pytest.mark.parametrize("metadata, found", [
    (None, "found version None"),
    ({"format": "pt"}, "found version None"),
    ({"jittor_lora_state": "2", "values": "{}"}, "found version 2"),
    ({"jittor_lora_state": "4", "values": "{}"}, "found version 4"),
    ({"jittor_lora_state": "3", "values": "{}"}, "damaged: expected SHA-256 , found"),
    ({"jittor_lora_state": "3", "values": "{}", "sha256": "1" * 64}, "damaged: expected SHA-256 1111"),
    ({"jittor_lora_state": "3", "values": "{}", "sha256": "\u20ac"}, "damaged: expected SHA-256 \u20ac"),
    ({"jittor_lora_state": "3", "sha256": "0" * 64}, "expected a training checkpoint"),
    ({"jittor_lora_state": "3", "values": "[]", "sha256": "0" * 64}, "expected a training checkpoint"),
    ({"jittor_lora_state": "3", "values": "{", "sha256": "0" * 64}, "not a readable checkpoint"),
    ({"jittor_lora_state": "3", "values": "[" * 100000, "sha256": "0" * 64}, "not a readable checkpoint"),
])
def test_other_files(tmp_path, metadata, found):
    path = tmp_path / "step-00000001.safetensors"
    save_file({"adapter.x": np.ones(3, np.float32)}, path, metadata)
    summed(path)
    with pytest.raises(UserError, match=found):
        read_state(path)


def test_the_checksum_is_that_of_the_file_with_zeros_in_its_place(tmp_path):
    path = write_state(tmp_path, 1, state(1), keep=1)
    whole = path.read_bytes()
    stated = SafetensorsFile(path).metadata["sha256"]
    assert hashlib.sha256(whole.replace(stated.encode(), b"0" * 64)).hexdigest() == stated
    assert load_file(path).keys() == state(1).arrays.keys()  # safetensors' own reader takes it


def test_values_are_plain_json(tmp_path):
    with pytest.raises(TypeError):
        write_state(tmp_path, 1, TrainingState({}, {"x": object()}), keep=1)
    assert not list(tmp_path.iterdir())
    assert json.loads(json.dumps(state(1).values)) == state(1).values
