"""JSON on standard output, whatever its encoding."""

from __future__ import annotations

import io
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jittor_lora.cli.output import json_text

VALUES = st.recursive(st.one_of(st.text(st.characters(codec="utf-8")), st.integers(), st.none(), st.booleans()),
                      lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner), max_leaves=5)


def printed(value, encoding, indent=None):
    """What arrives at the other end of standard output."""
    stream, before = io.BytesIO(), sys.stdout
    sys.stdout = io.TextIOWrapper(stream, encoding=encoding, errors="backslashreplace")
    try:
        print(json_text(value, indent), end="", flush=True)
        return stream.getvalue().decode(encoding)
    finally:
        sys.stdout = before


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "gbk", "utf-8", "utf-16"])
@given(VALUES)
def test_it_is_json_in_any_encoding(encoding, value):
    assert json.loads(printed(value, encoding)) == value


def test_characters_are_escaped_only_where_necessary():
    assert printed({"é": "水"}, "utf-8") == '{"é": "水"}'
    assert printed({"é": "水"}, "latin-1", indent=1) == '{\n "\\u00e9": "\\u6c34"\n}'
    assert json.loads(printed("\ud83c", "utf-8")) == "\ud83c"  # half a pair, as JSON may spell it
