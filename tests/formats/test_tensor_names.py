"""Tensor names that start with the name of a wrapper."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from jittor_lora.errors import UserError, some_of_each
from jittor_lora.formats.adapter_check import open_weights
from jittor_lora.formats.hugging_face import read_checkpoint
from jittor_lora.formats.tensor_names import without_adapter_name, wrapper_of
from model_files import make_folder, make_tensors


@pytest.fixture
def tensors(config):
    return make_tensors(config)


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "module._orig_mod.", "student."])
def test_a_wrapper_of_the_model_is_dropped_and_reported(tmp_path, config, tensors, wrapper):
    found = read_checkpoint(make_folder(tmp_path, config, {wrapper + name: a for name, a in tensors.items()}))
    assert found.tensors.keys() == tensors.keys()
    assert all(np.array_equal(found.tensors[name], tensors[name]) for name in tensors)
    (note,) = found.notes
    assert f"start with {wrapper}, which is removed" in note


def test_plain_names_give_no_note(tmp_path, config, tensors):
    assert read_checkpoint(make_folder(tmp_path, config, tensors)).notes == ()


def test_some_missing_and_some_unexpected_names_are_shown(tmp_path, config, tensors):
    names = iter(range(10**6))
    folder = make_folder(tmp_path, {**config, "n_layer": 40, "num_hidden_layers": 40},
                         {f"part{next(names)}.{name}": a for name, a in tensors.items()})
    with pytest.raises(UserError) as caught:
        read_checkpoint(folder)
    assert [str(caught.value).count(kind) for kind in (": missing, expected", ": unexpected, of")] == [10, 10]
    assert "part0." in str(caught.value)


def test_some_of_each():
    a, b, c = [f"a{i}" for i in range(30)], ["b0"], [f"c{i}" for i in range(3)]
    assert some_of_each(b, c) == ["b0", "c0", "c1", "c2"]
    assert some_of_each([], a, b, most=4) == ["a0", "a1", "a2", "… and 27 more", "b0"]
    assert some_of_each(a, a, most=4) == ["a0", "a1", "… and 28 more"] * 2
    assert some_of_each() == []


def test_only_a_prefix_of_all_names_is_dropped():
    def known(name):
        return name in ("a.weight", "b.weight")

    assert wrapper_of(["x.y.a.weight", "x.y.b.weight", "x.y.mask"], known) == "x.y."
    assert wrapper_of(["x.mask", "x.a.weight"], known) == "x."
    assert wrapper_of(["x.a.weight", "y.b.weight"], known) == ""
    assert wrapper_of(["a.weight", "x.b.weight"], known) == ""
    assert wrapper_of(["x.c.weight"], known) == wrapper_of([], known) == ""


def test_only_the_first_parts_of_a_very_long_name_are_tried():
    tried = []
    assert wrapper_of(["." * 100_000], tried.append) == "" and len(tried) < 100


def test_an_adapter_without_tensors_reports_no_wrapper(tmp_path, capsys):
    save_file({}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match="holds no arrays"):
        open_weights(tmp_path / "adapter_model.safetensors")
    assert capsys.readouterr().err == ""


def test_the_name_of_an_adapter():
    inside = {"m.lora_A.mine.weight": 1, "m.lora_embedding_B.mine": 2, "m.lora_magnitude_vector.mine.weight": 3, "n": 4}
    assert without_adapter_name(inside) == (
        {"m.lora_A.weight": 1, "m.lora_embedding_B": 2, "m.lora_magnitude_vector.weight": 3, "n": 4}, "mine")
    own = {"m.lora_A.weight": 1, "m.lora_embedding_A": 2, "m.lora_magnitude_vector": 3}
    assert without_adapter_name(own) == (own, "")
    several = {"m.lora_A.one.weight": 1, "m.lora_A.two.weight": 2}
    assert without_adapter_name(several) == (several, "")
