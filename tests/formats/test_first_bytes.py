"""Files whose content does not match their names."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from jittor_lora.errors import UserError
from jittor_lora.formats.bases import load_base, resolve_base
from jittor_lora.formats.gguf_file import GgufFile
from model_files import GPT2, make_gguf, make_tensors

OTHERS = {
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "a web page": b"<!DOCTYPE html><html></html>",
    "a zip or PyTorch file": b"PK\x03\x04" + bytes(80),
    "a pickle. If torch.save wrote it": b"\x80\x02}q\x00" + b"." * 80,
    "a gzip file": b"\x1f\x8b\x08\x00" + b"e" * 80,
}


def refused(do, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        do(*arguments)
    return str(caught.value)


@pytest.mark.parametrize("name", ["model.bin", "model", "model.safetensors"])
def test_a_gguf_file_by_any_name(tmp_path, name):
    make_gguf(tmp_path / name, GPT2, make_tensors(GPT2))
    found = resolve_base(str(tmp_path / name))
    assert found.kind == "gguf" and load_base(found)[0].config.family == "gpt2"


def test_a_gguf_file_in_place_of_the_weights(tmp_path):
    make_gguf(tmp_path / "model.safetensors", GPT2, make_tensors(GPT2))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert "found a GGUF file. Name the file itself" in refused(load_base, resolve_base(str(tmp_path)))


@pytest.mark.parametrize("what", OTHERS)
def test_other_files_in_place_of_a_model_are_named(tmp_path, what):
    for name in ("model", "model.gguf"):
        (tmp_path / name).write_bytes(OTHERS[what])
        assert what in refused(load_base, resolve_base(str(tmp_path / name)))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    (folder / "model.safetensors").write_bytes(OTHERS[what])
    assert what in refused(load_base, resolve_base(str(folder)))
    (folder / "config.json").write_bytes(OTHERS[what])
    assert what in refused(load_base, resolve_base(str(folder)))


def test_safetensors_under_other_names(tmp_path):
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "model.gguf")
    assert "a safetensors file. Name its folder" in refused(GgufFile, tmp_path / "model.gguf")
    (tmp_path / "model.gguf").rename(tmp_path / "weights.bin")
    assert "a safetensors file. Name its folder" in refused(load_base, resolve_base(str(tmp_path / "weights.bin")))
