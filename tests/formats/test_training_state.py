from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from jittor_lora.errors import UserError
from jittor_lora.formats.training_state import TrainingState, checkpoints, newest_state, read_state, write_state


def state(step):
    draw = np.random.RandomState(step)
    return TrainingState({f"{kind}.h.0.lora_A": draw.standard_normal((3, 7)).astype(np.float32)
                          for kind in ("adapter", "first", "second")},
                         {"step": step, "best_loss": 0.1 + 0.2, "text": "é", "nothing": None, "list": [1, 2.5]})


def same(a, b):
    assert a.values == b.values
    assert a.arrays.keys() == b.arrays.keys()
    assert all(a.arrays[name].tobytes() == b.arrays[name].tobytes() for name in a.arrays)


def test_what_is_written_is_read(tmp_path):
    path = write_state(tmp_path, 12, state(12), keep=2)
    assert path == tmp_path / "step-00000012.safetensors"
    same(read_state(path), state(12))
    found, newest, passed = newest_state(tmp_path)
    assert (found, passed) == (path, [])
    same(newest, state(12))


def test_arrays_read_are_the_readers_own(tmp_path):
    path = write_state(tmp_path, 1, state(1), keep=1)
    arrays = read_state(path).arrays
    path.unlink()
    for array in arrays.values():
        array += 1


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


def test_a_new_state_is_never_removed_for_a_damaged_later_one(tmp_path):
    write_state(tmp_path, 100, state(100), keep=1)
    (tmp_path / "step-00000200.safetensors").write_bytes(b"damaged")
    write_state(tmp_path, 150, state(150), keep=1)
    path, found, passed = newest_state(tmp_path)
    assert path.name == "step-00000150.safetensors"
    assert len(passed) == 1 and "step-00000200" in passed[0]
    same(found, state(150))


def test_a_truncated_file_is_passed_over_wherever_it_ends(tmp_path):
    write_state(tmp_path, 1, state(1), keep=9)
    path = write_state(tmp_path, 2, state(2), keep=9)
    whole = path.read_bytes()
    for length in range(0, len(whole), 64):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="step-00000002"):
            read_state(path)
        found, older, passed = newest_state(tmp_path)
        assert found.name == "step-00000001.safetensors"
        assert len(passed) == 1 and "step-00000002" in passed[0]
        same(older, state(1))


def test_when_none_can_be_read_all_are_named(tmp_path):
    for step in (1, 2):
        (tmp_path / f"step-{step:08d}.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError) as caught:
        newest_state(tmp_path)
    assert "step-00000001" in str(caught.value) and "step-00000002" in str(caught.value)


def test_there_may_be_none(tmp_path):
    assert newest_state(tmp_path) is None
    assert newest_state(tmp_path / "nowhere") is None


@pytest.mark.parametrize("metadata, found", [
    (None, "found version None"),
    ({"format": "pt"}, "found version None"),
    ({"jittor_lora_state": "1", "values": "{}"}, "found version 1"),
    ({"jittor_lora_state": "3", "values": "{}"}, "found version 3"),
    ({"jittor_lora_state": "2"}, "expected a training checkpoint"),
    ({"jittor_lora_state": "2", "values": "[]"}, "expected a training checkpoint"),
    ({"jittor_lora_state": "2", "values": "{"}, "not a readable checkpoint"),
    ({"jittor_lora_state": "2", "values": "[" * 100000}, "not a readable checkpoint"),
])
def test_files_of_another_kind(tmp_path, metadata, found):
    path = tmp_path / "step-00000001.safetensors"
    save_file({"adapter.x": np.ones(3, np.float32)}, path, metadata)
    with pytest.raises(UserError, match=found):
        read_state(path)


def test_values_are_plain_json(tmp_path):
    with pytest.raises(TypeError):
        write_state(tmp_path, 1, TrainingState({}, {"x": object()}), keep=1)
    assert not list(tmp_path.iterdir())
    assert json.loads(json.dumps(state(1).values)) == state(1).values
