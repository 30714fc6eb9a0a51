"""Files that are not UTF-8: the likely encoding is named, with the command that converts it."""

from __future__ import annotations

import itertools
import json
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jittor_lora.cli.generate import read_records
from jittor_lora.data.sources import load_data
from jittor_lora.data.wrong_encoding import likely_encoding
from jittor_lora.errors import UserError

SIMPLIFIED = "今天天气很好，我们一起去公园散步吧。请把下面的句子翻译成英文：你好，世界！"
TRADITIONAL = "今天天氣很好，我們一起去公園散步吧。請把下面的句子翻譯成英文：你好，世界！"


def row(text: str) -> str:
    return json.dumps({"prompt": text, "completion": text}, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("content, name", [
    (row(SIMPLIFIED).encode("gbk"), "GB18030"), (row(SIMPLIFIED).encode("gb18030"), "GB18030"),
    (f"prompt,completion\n{SIMPLIFIED},{SIMPLIFIED}\n".encode("gbk"), "GB18030"),
    (row(TRADITIONAL).encode("big5"), "BIG-5"),
    (row(SIMPLIFIED).encode("utf-16"), "UTF-16"), (b"\xfe\xff" + row("ab").encode("utf-16-be"), "UTF-16"),
    (row("ab").encode("utf-16-le"), "UTF-16LE"), (row(SIMPLIFIED).encode("utf-16-le"), "UTF-16LE"),
    (row("ab").encode("utf-16-be"), "UTF-16BE"), (row("ab" + SIMPLIFIED).encode("utf-16-be"), "UTF-16BE"),
    (row(SIMPLIFIED).encode("utf-32"), "UTF-32"),
    (row(SIMPLIFIED * 4000).encode("gb18030"), "GB18030"),
], ids=itertools.count())
def test_the_command_converts_it(tmp_path, content, name):
    path = tmp_path / "my data.jsonl"
    path.write_bytes(content)
    for read in (load_data, read_records):
        with pytest.raises(UserError) as caught:
            read(str(path))
        assert f"Convert it: iconv -f {name} -t UTF-8 '" in str(caught.value), str(caught.value)
    command = str(caught.value).partition("Convert it: ")[2]
    subprocess.run(command, shell=True, check=True)
    assert len(load_data(f"{path}.utf-8").prompts) == 1


@pytest.mark.parametrize("content", [row("Où est-il ? Là-bas, à côté.").encode("latin-1"), b'{"prompt": "\xff"}',
                                     row("caf\u00e9").encode("cp1252"), b"\x80\x81\x82" * 20])
def test_there_is_not_always_telling(tmp_path, content):
    path = tmp_path / "data"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"expected UTF-8, found byte 0x\w\w at .* \(line 1\). Save it as UTF-8"):
        load_data(str(path))


@pytest.mark.parametrize("start, kind", [(b"\x1f\x8b\x08", "gzip"), (b"PK\x03\x04", "Excel"),
                                         (b"\x28\xb5\x2f\xfd", "zstd")])
def test_packed_files_are_named(tmp_path, start, kind):
    path = tmp_path / "data"
    path.write_bytes(start + b"\x00\xff\xfe" * 9)
    with pytest.raises(UserError, match=f"It is packed .*{kind}"):
        load_data(str(path))


@given(st.binary(max_size=300))
def test_any_bytes_have_a_name_or_none(content):
    assert likely_encoding(content) in {None, "GB18030", "BIG-5", "UTF-16", "UTF-16LE", "UTF-16BE", "UTF-32"}
