"""The same conversations in every format and container read as the same turns; mixed and broken files are refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conversation_files import CONTAINERS, FORMATS, lines, messages, parquet, turns
from jittor_lora.data.report import describe_data
from jittor_lora.data.sources import load_data
from jittor_lora.errors import UserError
from needs import needs_parquet

# No U+0000, which the csv module of older Pythons refuses.
TEXTS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=12).filter(
    str.strip) | st.sampled_from(['"', 'a,"b"', "a\nb\r\n", "[1, 2]", '{"a": 1}', "||", "你好，世界", "<|im_end|>\n",
                                  "x\u2028y"])


@st.composite
def conversations(draw):
    count = draw(st.integers(1, 3))
    return turns(*draw(st.lists(TEXTS, min_size=2 * count, max_size=2 * count)), system=draw(st.none() | TEXTS))


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize("container", [*CONTAINERS, pytest.param("parquet", marks=needs_parquet)])
@pytest.mark.parametrize("format", FORMATS)
def test_what_is_written_is_read(tmp_path, container, format):
    writer = {**CONTAINERS, "parquet": parquet}[container]

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(conversations(), min_size=1, max_size=4))
    def same(written):
        path = write(tmp_path, "data", writer([FORMATS[format](one) for one in written]))
        for purpose in ("training", "evaluation", "prompts"):
            assert [one.turns for one in load_data(path, purpose=purpose).conversations] == written

    same()


@pytest.mark.parametrize("format, said", [
    ("messages", "messages, 3 conversations, 4 turns of the assistant, 1 with a system turn"),
    ("sharegpt", "ShareGPT, 3 conversations, 4 turns of the assistant, 1 with a system turn"),
    ("alpaca", "Alpaca, 3 conversations, 4 turns of the assistant, 1 with a system turn"),
])
def test_the_format_and_the_counts_are_said(tmp_path, format, said):
    rows = [turns("a", "b"), turns("a", "b", "c", "d", system="s"), turns("e", "f")]
    assert describe_data(load_data(write(tmp_path, "data", lines(map(FORMATS[format], rows))))) == said


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_a_file_has_one_format(tmp_path, first, second):
    rows = [FORMATS[name](turns("a", "b")) for name in (first, second, "messages", "alpaca")]
    with pytest.raises(UserError) as caught:
        load_data(write(tmp_path, "data", lines(rows)))
    assert ("line 4" in str(caught.value)) == (first != "alpaca")
    assert ("line 3" in str(caught.value)) == (first not in ("messages", "parts"))


@pytest.mark.parametrize("format", FORMATS)
def test_ids_are_the_rows_own_or_their_numbers_and_used_once(tmp_path, format):
    row = FORMATS[format](turns("a", "b"))
    found = load_data(write(tmp_path, "data", lines([{**row, "id": 7}, row, {**row, "id": "é"}])))
    assert [one.id for one in found.conversations] == ["7", "2", "é"]
    with pytest.raises(UserError, match=r"line 3, id: expected an id not used before \(it is in line 1\)"):
        load_data(write(tmp_path, "data", lines([{**row, "id": "x"}, row, {**row, "id": "x"}])))
    with pytest.raises(UserError, match="line 1, id: expected a text or a whole number"):
        load_data(write(tmp_path, "data", lines([{**row, "id": [1]}])))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("spoil", [lambda text: text[:-9], lambda text: text.replace(b"b", b"\\ud800"),
                                   lambda text: b"[" + text, lambda text: text + b"null\n"])
def test_broken_files_name_the_place(tmp_path, format, spoil):
    content = lines([FORMATS[format](turns("a", "b")), FORMATS[format](turns("c", "bbb"))])
    with pytest.raises(UserError, match=r"data: .*\n  (line [123]|the whole file)"):
        load_data(write(tmp_path, "data", spoil(content)))


def test_a_huge_line_is_read_or_refused_in_few_words(tmp_path):
    text = "x" * 3_000_000
    for container in CONTAINERS.values():
        found = load_data(write(tmp_path, "data", container([messages(turns(text, "b"))])))
        assert len(found.conversations[0].turns[0].text) == len(text)
        with pytest.raises(UserError) as caught:
            load_data(write(tmp_path, "data", container([messages(turns("a", "b")), {"messages": text}])))
        assert len(str(caught.value)) < 2000


def test_every_offender_is_counted(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "a"}]}] * 500
    with pytest.raises(UserError, match="500 places are not as expected"):
        load_data(write(tmp_path, "data", lines(rows)))


@pytest.mark.parametrize("text", ["", " \n", "{}", "[]", "{}\n{}", "[[]]", "null", '"a"', "7"])
def test_nothing_in_a_file(tmp_path, text):
    with pytest.raises(UserError):
        load_data(write(tmp_path, "data", text.encode()))


def test_rows_without_any_format_come_after_some_that_have_one(tmp_path):
    content = json.dumps({"note": "made by hand"}).encode() + b"\n" + lines([messages(turns("a", "b"))])
    with pytest.raises(UserError, match='line 1, messages: expected a list of turns, found nothing'):
        load_data(write(tmp_path, "data", content))
