"""Recipes are untrusted: any bytes give either settings or a `UserError`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jittor_lora.errors import UserError
from jittor_lora.settings import recipe

BOMB = "a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n"


@pytest.mark.parametrize("content, expected", [
    (b"lora_r: 1\nseed: 2\nlora_r: 3\n", "line 3: lora_r is set twice, first in line 1"),
    (BOMB.encode(), "line 1: anchors and aliases"),
    (b"a: *b\n", "line 1: anchors and aliases"),
    (b"a: !!python/object/apply:os.system ['true']\n", "line 1: tags are not allowed"),
    (b"a: !x y\n", "line 1: tags are not allowed"),
    (b"a: 1\n---\nb: 2\n", "line 2: expected one document"),
    (b"a: " + b"[" * 20_000, "line 1: expected `setting: value` lines, found deeply nested"),
    (b"- a\n- b\n", "found a list"),
    (b"hello\n", "found plain text"),
    (b"[a]: 1\n", "expected the name of a setting before the colon, found a list"),
    (b"a: [1\n", "not valid YAML"),
    (b"a:\tb: c\n", "not valid YAML"),
    (b"a: \x00\n", "not valid YAML"),
    (b"a: \xff\n", "expected UTF-8 text, found the byte 0xff at position 3"),
    ("a: 1\n".encode("utf-16"), "expected UTF-8 text"),
    (b"#" * (recipe.LARGEST_RECIPE + 1), "at most 65,536 bytes"),
])
def test_refused(tmp_path, content, expected):
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        recipe.read(path)
    assert expected in str(caught.value) and str(path) in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


def test_values_are_text_lists_and_null(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes("\ufeffa: 1e-4\nb: [x, 'null', 010]\nc:\nd: ~\ne: null\nf: \"~\"\ng: 12:30\nh: ü\n".encode())
    values, origins = recipe.read(path)
    assert values == {"a": "1e-4", "b": ["x", "null", "010"], "c": None, "d": None, "e": None, "f": "~", "g": "12:30",
                      "h": "ü"}
    assert origins["g"] == f"{path}, line 7"


@pytest.mark.parametrize("content", [b"", b"# nothing yet\n"])
def test_an_empty_recipe(tmp_path, content):
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    assert recipe.read(path)[0] == {}


@given(st.binary(max_size=200) | st.text("ab:-[]{}&*!|>'\"#% ,\n\t?~0.", max_size=60).map(str.encode))
def test_any_bytes(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    try:
        values, origins = recipe.read(path)
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert values.keys() == origins.keys()


def test_find(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipe.find("quickstart").parent == recipe.SHIPPED
    (tmp_path / "quickstart").write_text("lora_r: 2\n")
    assert recipe.find("quickstart").read_text() == "lora_r: 2\n"
    with pytest.raises(UserError, match="did you mean reference"):
        recipe.find("referense")
    with pytest.raises(UserError, match="found a folder"):
        recipe.find(str(tmp_path))
    with pytest.raises(UserError, match="no such file"):
        recipe.find("../recipes/quickstart")
