from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save, save_file

from jittor_lora.errors import UserError
from jittor_lora.formats.safetensors_file import SafetensorsFile, write_safetensors

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def pack(header, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def refused(path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def test_reads_what_the_reference_library_writes(path):
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float16([1.5, -2]), "c": np.float64([0.1]),
               "ids": np.arange(3)}
    save_file(tensors, path, {"format": "pt"})
    file = SafetensorsFile(path)
    assert file.metadata == {"format": "pt"} and set(file) == set(tensors)
    assert np.array_equal(file["a"], tensors["a"]) and file["a"].dtype == np.float32
    assert np.array_equal(file["b"], np.float32([1.5, -2])) and file["b"].dtype == np.float32
    assert np.array_equal(file["c"], np.float32([0.1])) and file["c"].dtype == np.float32
    with pytest.raises(UserError, match="ids: expected one of F64, F32, F16, BF16; found I64"):
        file["ids"]


def test_bfloat16_is_the_upper_half_of_a_float32(path):
    values = np.float32([1.0, -2.5, 3.140625, 0.0, np.inf, 1e-40])
    upper = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    path.write_bytes(pack({"x": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}, upper))
    expected = (values.view(np.uint32) & 0xFFFF0000).view(np.float32).reshape(2, 3)
    assert np.array_equal(SafetensorsFile(path)["x"].view(np.uint32), expected.view(np.uint32))


def test_float32_is_a_view_of_the_file(path):
    save_file({"x": np.ones((4, 4), np.float32)}, path)
    file = SafetensorsFile(path)
    assert np.shares_memory(file["x"], file["x"])
    assert not file["x"].flags.writeable


def test_unaligned_data_is_copied_to_an_aligned_array(path):
    header = json.dumps({"x": ENTRY}).encode()
    header += b" " * ((1 - len(header)) % 4)  # the data start at an odd offset
    path.write_bytes(pack(header, np.float32([3, 4]).tobytes()))
    values = SafetensorsFile(path)["x"]
    assert values.flags.aligned and np.array_equal(values, [3, 4])


def test_the_reference_library_reads_what_is_written():
    tensors = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.float32([7])}
    stream = io.BytesIO()
    write_safetensors(stream, tensors, {"b": (2, 3), "a": (1,)}, {"format": "pt"}, Path("x"))
    content = stream.getvalue()
    back = load(content)
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)
    length = struct.unpack("<Q", content[:8])[0]
    assert length % 8 == 0 and json.loads(content[8 : 8 + length])["__metadata__"] == {"format": "pt"}


def test_a_tensor_of_another_shape_is_not_written():
    with pytest.raises(ValueError, match="a: expected shape"):
        write_safetensors(io.BytesIO(), {"a": np.ones(3, np.float32)}, {"a": (4,)}, {}, Path("x"))


def test_values_that_are_not_finite_are_not_written():
    """Including those that overflow in float32; all are named."""
    tensors = {"good": np.ones(2), "nan": np.float32([1, np.nan, 2]), "large": np.float64([1e300, -1e300]),
               "inf": np.float32([-np.inf]), "largest": np.float32([3e38, -3e38])}
    with pytest.raises(UserError) as caught, np.errstate(over="ignore"):
        write_safetensors(io.BytesIO(), tensors, {name: a.shape for name, a in tensors.items()}, {}, Path("x"))
    assert str(caught.value).splitlines()[:-1] == [
        "x: not written, because of numbers that are not finite:", "  nan: 1 NaN of 3 numbers",
        "  large: 2 infinite of 2 numbers", "  inf: 1 infinite of 1 numbers"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found only 0 bytes"),
        (b"\0\0\0", "found only 3 bytes"),
        (struct.pack("<Q", 1 << 62) + b"{}", "not a safetensors file"),
        (pack({}, length=200), "truncated"),
        (pack(b"not json"), "not JSON"),
        (pack(b"\xff\xfe{}"), "not JSON"),
        (pack(b"[" * 100_000), "not JSON"),
        (pack(b"[1]"), "not a JSON object"),
        (pack(b'{"a": 1, "a": 2}'), "occurs twice"),
        (pack({"__metadata__": 3}), "__metadata__"),
        (pack({"__metadata__": {"format": 3}}), "__metadata__"),
        (pack({"x": 3}), "x: expected dtype, shape and data_offsets"),
        (pack({"x": {**ENTRY, "dtype": "Q4"}}, bytes(8)), "x: expected a known dtype"),
        (pack({"x": {**ENTRY, "shape": [-2]}}, bytes(8)), "x: expected dtype, shape"),
        (pack({"x": {**ENTRY, "shape": [True, 2]}}, bytes(8)), "x: expected dtype, shape"),
        (pack({"x": {**ENTRY, "shape": [3]}}, bytes(8)), "expected 12 bytes"),
        (pack({"x": {**ENTRY, "shape": [1 << 40, 1 << 40]}}, bytes(8)), "expected 4835703278458516698824704 bytes"),
        (pack({"x": {**ENTRY, "data_offsets": [8, 0]}}, bytes(8)), "expected 8 bytes"),
        (pack({"x": {**ENTRY, "data_offsets": [0, 8, 9]}}, bytes(8)), "x: expected dtype, shape"),
        (pack({"x": ENTRY}, bytes(7)), "truncated"),
        (pack({"x": {**ENTRY, "data_offsets": [800, 808]}}, bytes(8)), "truncated"),
        (pack({"x": ENTRY, "y": {**ENTRY, "data_offsets": [4, 12]}}, bytes(12)), "y overlaps that of x"),
    ],
)
def test_malformed_files_are_refused(path, content, message):
    assert message in refused(path, content)


def test_a_missing_file_is_refused(path):
    with pytest.raises(UserError, match="No such file"):
        SafetensorsFile(path)


@given(cut=st.integers(0, 200), flips=st.lists(st.tuples(st.integers(0, 199), st.integers(0, 255)), max_size=4))
def test_damaged_files_are_refused_or_read_within_their_bounds(tmp_path_factory, cut, flips):
    content = bytearray(save({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)}))
    for position, value in flips:
        content[position % len(content)] = value
    path = tmp_path_factory.mktemp("damaged") / "x.safetensors"
    path.write_bytes(bytes(content[: cut + 1]))
    try:
        file = SafetensorsFile(path)
        assert all(file.raw(name).nbytes == entry.end - entry.begin for name, entry in file.entries.items())
    except UserError:
        pass
