"""A base quantised into the cache: its numbers are gguf's, and its file is made once, or again when damaged."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil

import gguf
import numpy as np
import pytest

import model_files
import small_run
from jittor_lora.errors import UserError
from jittor_lora.formats import quantised_base
from jittor_lora.formats.bases import load_base, resolve_base
from jittor_lora.formats.quantised_base import bytes_in, in_precision
from jittor_lora.model.config import is_conv1d, tensor_shapes
from jittor_lora.ops.blocks import stored_in

KINDS = {"bf16": ("BF16", "BF16"), "q8": ("Q8_0", "Q8_0"), "q4": ("Q8_0", "Q4_1")}  # of tables, of other matrices
ODD = {**model_files.LLAMA, "intermediate_size": 40, "tie_word_embeddings": False, "attention_bias": True}


@pytest.fixture
def base(tmp_path):
    return small_run.make_base(tmp_path / "base")


def quantised(base, precision, folder, said=None):
    """The base in a precision, as `session.load` gets it, and its checkpoint before."""
    resolved = resolve_base(str(base))
    checkpoint, _ = load_base(resolved, say=lambda text: None)
    return in_precision(checkpoint, resolved, precision, folder / "cache", (said if said is not None else []).append), \
        checkpoint


def the_file(folder):
    (path,) = (folder / "cache" / "quantised").iterdir()
    return path


def rounded(matrix, kind):
    kind = gguf.GGMLQuantizationType[kind]
    return gguf.quants.dequantize(gguf.quants.quantize(np.ascontiguousarray(matrix), kind), kind)


@pytest.mark.parametrize("precision", KINDS)
def test_the_numbers_are_those_of_gguf(precision, tmp_path):
    for config in (small_run.GPT2, ODD):
        base = small_run.make_base(tmp_path / config["model_type"], config)
        found, before = quantised(base, precision, tmp_path)
        assert list(found.tensors) == list(before.tensors) and found.precision == precision
        size = 0
        for name, shape in tensor_shapes(before.config).items():
            exact, blocks = before.tensors[name], stored_in(found.tensors, name)
            if len(shape) == 1 or "wpe" in name:
                assert blocks is None and np.array_equal(found.tensors[name], exact)
                size += exact.nbytes
                continue
            matrix = exact.T if is_conv1d(before.config, name) else exact
            kind = KINDS[precision][0 if "wte" in name or "embed" in name or "lm_head" in name else 1]
            assert blocks.kind == (kind if matrix.shape[1] % 32 == 0 else "BF16")
            expected = rounded(matrix, blocks.kind)
            assert np.array_equal(blocks.decoded(), expected)
            assert np.array_equal(found.tensors[name], expected.T if matrix is not exact else expected)
            size += blocks.data.nbytes
        assert bytes_in(before, precision) == bytes_in(found, "auto") == size < bytes_in(before, "fp32")


def test_it_is_made_once(base, tmp_path):
    said = []
    first, _ = quantised(base, "q4", tmp_path, said)
    path = the_file(tmp_path)
    assert len(said) == 1 and str(path) in said[0]
    made = os.stat(path)
    killed = path.with_name(f".{path.name}.abcdefgh.tmp")  # what a killed process leaves
    killed.write_bytes(b"GGUF")
    quantised(base, "q8", tmp_path)
    assert not killed.exists()
    again, _ = quantised(base, "q4", tmp_path, said)
    assert os.stat(path) == made and len(said) == 1
    assert again.original == first.original
    assert all(np.array_equal(again.tensors[name], first.tensors[name]) for name in first.tensors)


def test_another_base_in_its_place_is_quantised_again(base, tmp_path):
    before = quantised(base, "q8", tmp_path)[0]
    model_files.make_folder(base, small_run.GPT2, model_files.make_tensors(small_run.GPT2, seed=5))
    after, exact = quantised(base, "q8", tmp_path)
    assert after.original != before.original and the_file(tmp_path)
    name = "transformer.wte.weight"
    assert np.array_equal(after.tensors[name], rounded(exact.tensors[name], "Q8_0"))


def test_a_damaged_file_is_made_again(base, tmp_path):
    quantised(base, "q4", tmp_path)
    path = the_file(tmp_path)
    content = path.read_bytes()
    draw = np.random.default_rng(0)
    places = [0, 10, 60, len(content) - 1, *draw.integers(0, len(content), 12).tolist()]
    damaged = [content[:place] + bytes([content[place] ^ 1 << int(draw.integers(8))]) + content[place + 1 :]
               for place in places]
    for wrong in (*damaged, b"", content[:1000], content[:-1], content + b"\0"):
        path.write_bytes(wrong)
        said = []
        quantised(base, "q4", tmp_path, said)
        assert path.read_bytes() == content and len(said) == 1


def test_two_processes_make_it_once(base, tmp_path):
    forked = multiprocessing.get_context("fork")
    together, told = forked.Barrier(2), forked.SimpleQueue()

    def make():
        said = []
        together.wait()
        quantised(base, "q4", tmp_path, said)
        told.put(len(said))

    processes = [forked.Process(target=make) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0] and sorted(told.get() for _ in processes) == [0, 1]
    assert the_file(tmp_path)


def test_what_is_as_small_already_stays(tmp_path):
    tokenized = {**model_files.LLAMA, "hidden_size": 256, "head_dim": 64, "intermediate_size": 256}
    tensors = model_files.make_tensors(tokenized)
    for kind, precision, stays in (("Q4_K", "q4", True), ("Q4_1", "q8", True), ("Q8_0", "q4", False),
                                   ("Q5_1", "q4", False), ("Q2_K", "q8", False)):
        path, said = tmp_path / f"{kind}.gguf", []
        kept = model_files.make_gguf(path, tokenized, tensors, kind)
        found, before = quantised(path, precision, tmp_path, said)
        assert (found.tensors is before.tensors) == stays and (found.precision == "auto") == stays
        assert len(said) == 1 and ("as they are" in said[0]) == stays
        name = "model.layers.0.self_attn.q_proj.weight"
        assert np.array_equal(found.tensors[name],
                              kept[name] if stays else rounded(kept[name], KINDS[precision][1]))


def test_where_it_cannot_be_written(base, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match="--base-precision auto"):
        quantised(base, "q4", tmp_path)
    (tmp_path / "cache").unlink()
    monkeypatch.setattr(quantised_base.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1000))
    with pytest.raises(UserError, match="MiB are free"):
        quantised(base, "q4", tmp_path)
    monkeypatch.undo()

    def full(stream, *_):
        stream.write(b"GGUF")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(quantised_base, "write", full)
    with pytest.raises(UserError, match="No space left"):
        quantised(base, "q4", tmp_path)
    assert list((tmp_path / "cache" / "quantised").iterdir()) == []


def test_numbers_that_are_not_finite(tmp_path):
    tensors = model_files.make_tensors(small_run.GPT2)
    tensors["transformer.h.1.mlp.c_fc.weight"][3, 4] = np.nan
    base = small_run.make_base(tmp_path / "base")
    model_files.make_folder(base, small_run.GPT2, tensors)
    with pytest.raises(UserError, match=r"h\.1\.mlp\.c_fc\.weight.*NaN"):
        quantised(base, "q8", tmp_path)
    assert list((tmp_path / "cache" / "quantised").iterdir()) == []
