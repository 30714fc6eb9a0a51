"""Records on disk: as they are written, and damaged in every way that an interrupted or foreign script leaves."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.synthetic import make_record, write_arrays, write_record
from jittor_lora.alignment import record as names
from jittor_lora.alignment.compare import compare
from jittor_lora.alignment.read_record import read_record
from jittor_lora.errors import UserError

RECORD = make_record()
FILES = (names.FACTS, names.BASE, names.STEPS, names.FIRST_STEP, names.HELD_OUT, names.ANSWERS,
         f"{names.ADAPTER}/adapter_config.json", f"{names.INITIAL_ADAPTER}/adapter_model.safetensors")


@pytest.fixture
def folder(tmp_path):
    return write_record(tmp_path / "side", RECORD)


def refusal(folder):
    with pytest.raises(UserError) as error:
        read_record(folder)
    return str(error.value)


def test_what_was_written_is_read(folder):
    found = compare(RECORD, read_record(folder))
    assert {check.found for check in found.checks if check.key != "loss"} == {0.0}
    assert found.agrees and found.checks[4].found < 1e-7  # the loss is kept in float32
    again = read_record(folder)
    assert list(again.first_step) == list(RECORD.first_step)  # the order of computation
    assert again.steps == RECORD.steps and again.facts == RECORD.facts and again.scaling == RECORD.scaling


def test_numbers_that_are_not_finite_are_read_for_the_comparison_to_report(folder):
    lines = (folder / names.STEPS).read_text().splitlines()
    lines[3] = ",".join(["3", "nan", "inf", *lines[3].split(",")[3:]])
    (folder / names.STEPS).write_text("\n".join(lines) + "\n")
    base = json.loads((folder / names.BASE).read_text())
    base["wte.weight"]["norm"] = math.nan
    (folder / names.BASE).write_text(json.dumps(base))
    found = compare(RECORD, read_record(folder))
    assert found.first_failure.key == "base" and found.first_failure.found == math.inf
    assert math.isnan(found.steps[1][2].loss)


def test_columns_in_another_order_and_others_beside_them(folder):
    rows = [line.split(",") for line in (folder / names.STEPS).read_text().splitlines()]
    turned = [[*row[::-1], "note" if number == 0 else "x"] for number, row in enumerate(rows)]
    (folder / names.STEPS).write_text("\ufeff" + "\r\n".join(map(",".join, turned)) + "\r\n")
    assert read_record(folder).steps == RECORD.steps


def test_all_that_is_missing_is_named(folder):
    for name in (names.FACTS, names.STEPS, names.HELD_OUT):
        (folder / name).unlink()
    (folder / names.ADAPTER / "adapter_model.safetensors").unlink()
    text = refusal(folder)
    for part in (names.FACTS, names.STEPS, names.HELD_OUT, "adapter/adapter_model.safetensors", names.LOG):
        assert part in text
    assert names.BASE not in text
    assert "no such folder" in refusal(folder / "nowhere")


@pytest.mark.parametrize("name", FILES)
def test_every_file_truncated_or_replaced_is_refused_by_name(folder, name):
    content = (folder / name).read_bytes()
    for other in (b"", b"\x00\xff\xfe" * 40, content[: len(content) // 3], b"[1, 2]", b"{}{"):
        (folder / name).write_bytes(other)
        assert name in refusal(folder)
    (folder / name).unlink()
    (folder / name).mkdir()
    assert name in refusal(folder)
    (folder / name).rmdir()
    os.mkfifo(folder / name)
    assert name in refusal(folder)  # and does not wait


@pytest.mark.parametrize("line", ["2,1.0,1.0,0.1,5,5", "two,1,1,1,1,1,1", "1,1,1,1,1,1,1", "2,1,1,1,-1,1,1",
                                  "2,1,1,1,1.5,1,1", "2,1,1,1,1,1,nan", '2,"1"x,1,1,1,1,1', "2,1e400x,1,1,1,1,1"])
def test_a_step_that_is_none(folder, line):
    lines = (folder / names.STEPS).read_text().splitlines()
    lines[2] = line
    (folder / names.STEPS).write_text("\n".join(lines))
    text = refusal(folder)
    assert names.STEPS in text and ("step 2" in text or "comma-separated" in text)


def test_a_table_without_columns_or_steps(folder):
    (folder / names.STEPS).write_text("step,loss\n1,2\n")
    assert "missing: grad_norm, learning_rate, labels, tokens, seconds" in refusal(folder)
    (folder / names.STEPS).write_text("step,loss,grad_norm,learning_rate,labels,tokens,seconds\n")
    assert "has no steps" in refusal(folder)


@pytest.mark.parametrize("name, key, value", [
    (names.FACTS, "framework", 3), (names.FACTS, "versions", {"torch": 2}), (names.FACTS, "training_seconds", -1),
    (names.FACTS, "peak_bytes", math.inf), (names.BASE, "wte.weight", [1]), (names.ANSWERS, "q1", 5),
    (names.BASE, "wte.weight", {"shape": [-1], "sum": 1, "norm": 1}),
    (names.BASE, "wte.weight", {"shape": [1], "sum": "1", "norm": 1})])
def test_values_of_another_kind(folder, name, key, value):
    values = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**values, key: value}))
    text = refusal(folder)
    assert name in text and key in text


def test_arrays_of_another_kind(folder, tmp_path):
    spoilt = {**RECORD.first_step}
    for name, array in (("loss", np.ones(2)), ("loss", None)):
        side = write_record(tmp_path / f"other{array is None}", RECORD)
        write_arrays(side / names.FIRST_STEP, spoilt if array is None else {**spoilt, name: array})
        assert "loss: expected one number" in refusal(side)
        write_arrays(side / names.HELD_OUT, {"0": np.ones((2, 3)), "2": np.ones((2, 3))})
        assert "expected matrices named 0, 1" in refusal(side)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(FILES), at=st.floats(0, 1), cut=st.floats(0, 1), noise=st.binary(max_size=12))
def test_whatever_is_in_a_file_is_read_or_refused(tmp_path_factory, name, at, cut, noise):
    folder = write_record(tmp_path_factory.mktemp("side") / "x", RECORD)
    content = (folder / name).read_bytes()
    start = int(at * len(content))
    end = start + int(cut * (len(content) - start))
    (folder / name).write_bytes(content[:start] + noise + content[end:])
    try:
        found = compare(RECORD, read_record(folder))
    except UserError as error:
        assert str(folder) in str(error)
    else:
        assert isinstance(found.agrees, bool)
