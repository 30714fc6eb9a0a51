"""Parquet through pyarrow: nested lists, nulls, damaged files, and what is said without the library."""

from __future__ import annotations

import builtins
import sys
from types import ModuleType

import pytest

from conversation_files import messages, parquet, sharegpt, turns
from jittor_lora.data import parquet as module
from jittor_lora.data.sources import load_data
from jittor_lora.errors import UserError
from needs import needs_parquet


@pytest.fixture
def write(tmp_path):
    def write(content: bytes, name: str = "data.parquet") -> str:
        path = tmp_path / name
        path.write_bytes(content)
        return str(path)
    return write


@needs_parquet
def test_structs_have_all_keys(write):
    rows = [{"messages": [{"role": "user", "content": "a", "tool_calls": None},
                          {"role": "assistant", "content": "b", "weight": 0}]}, messages(turns("c", "d", system="s"))]
    first, second = load_data(write(parquet(rows)), purpose="evaluation").conversations
    assert first.turns[1].scored is False and second.turns == turns("c", "d", system="s")
    assert (first.id, second.id) == ("1", "2")


@needs_parquet
def test_more_rows_than_a_batch(write):
    rows = [{"prompt": f"{i}", "completion": "b", "id": i} for i in range(1000)]
    assert [p.id for p in load_data(write(parquet(rows))).prompts] == [str(i) for i in range(1000)]


@needs_parquet
def test_columns_of_no_format_are_not_decoded(write):
    rows = [{"picture": b"\x00" * 100, "prompt": "a", "completion": "b", "when": 3}]
    assert len(load_data(write(parquet(rows)))) == 1
    with pytest.raises(UserError, match="Its fields: picture, note."):
        load_data(write(parquet([{"picture": b"\x00", "note": "a"}])))
    found = load_data(write(parquet([{"q": "a", "r": "b", "id": 1}])), columns={"prompt": "q", "completion": "r"})
    assert found.prompts[0].text == "a"


@needs_parquet
def test_squad_as_datasets_writes_it(write):
    rows = [{"id": "x", "title": "t", "context": "Rome is old.", "question": "Q?",
             "answers": {"text": ["old"], "answer_start": [8]}}]
    assert load_data(write(parquet(rows))).paragraphs[0].questions[0].answers[0].start == 8


@needs_parquet
def test_offenders_are_rows(write):
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": None, "completion": "b"}, {"prompt": "c", "completion": ""}]
    with pytest.raises(UserError) as caught:
        load_data(write(parquet(rows)))
    assert "row 2, prompt: " in str(caught.value) and "row 3, completion: " in str(caught.value)
    with pytest.raises(UserError, match="row 1, prompt: expected"):
        load_data(write(parquet([{"prompt": b"a", "completion": "b"}])))


@needs_parquet
@pytest.mark.parametrize("spoil", [lambda c: c[:20], lambda c: c[:-5], lambda c: c[:60] + b"\xff" * 40 + c[100:],
                                   lambda c: b"PAR1", lambda c: c[:4] + c[-8:]])
def test_damaged_files(write, spoil):
    path = write(spoil(parquet([sharegpt(turns("a" * i, "b")) for i in range(1, 300)])))
    with pytest.raises(UserError, match=r"data.parquet: not a whole parquet file \("):
        load_data(path)


@needs_parquet
def test_a_file_that_unpacks_to_too_much_is_refused(write, monkeypatch):
    monkeypatch.setattr(module, "LARGEST", 1 << 20)
    path = write(parquet([{"prompt": f"{i}" + "x" * 10_000, "completion": "b"} for i in range(1000)]))
    with pytest.raises(UserError, match="expected at most 1,048,576 bytes of data; found more"):
        load_data(path)


def test_the_library_is_named_where_it_is_missing(write, monkeypatch):
    def without(name, *more, whole=builtins.__import__):
        if name.startswith("pyarrow"):
            raise ImportError("No module named 'pyarrow'")
        return whole(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'jittor-lora\[parquet\]', or convert the file"):
        load_data(write(b"PAR1 and more"))


def test_versions_that_run_code_of_a_file_are_refused(write, monkeypatch):
    fake, inner = ModuleType("pyarrow"), ModuleType("pyarrow.parquet")
    fake.__version__, fake.parquet = "14.0.0", inner
    monkeypatch.setitem(sys.modules, "pyarrow", fake)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", inner)
    with pytest.raises(UserError, match="pyarrow 14.0.0 is not safe"):
        load_data(write(b"PAR1 and more"))
