from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jittor_lora.errors import UserError
from jittor_lora.evaluation.predictions import read_predictions, write_predictions, write_question_scores
from jittor_lora.evaluation.scoring import score


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8"))))
def test_round_trip(tmp_path_factory, predictions):
    path = tmp_path_factory.mktemp("predictions") / "predictions.json"
    write_predictions(path, predictions)
    assert read_predictions(path) == predictions
    assert json.loads(path.read_text(encoding="utf-8")) == predictions


def test_all_offenders_are_named_at_once(tmp_path):
    path = tmp_path / "p.json"
    path.write_text('{"a": "x", "b": 3, "a": "y", "c": null, "d": ["x"], "e": "\\ud800", "f": {"a": "x", "a": "y"}, '
                    '"g": NaN, "good": "z"}')
    with pytest.raises(UserError) as caught:
        read_predictions(path)
    message = str(caught.value)
    assert f"{path}: 7 of 9 predictions cannot be used" in message
    for line in ("'a': occurs more than once", "'b': expected a text, found a number",
                 "'c': expected a text, found null", "'d': expected a text, found an array",
                 "'e': contains half a UTF-16 surrogate pair", "'f': expected a text, found an object",
                 "'g': expected a text, found a number"):
        assert line in message
    assert "'good'" not in message


def test_many_offenders_stay_on_one_screen(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps({f"q{index}": index for index in range(500)}))
    with pytest.raises(UserError, match="500 of 500") as caught:
        read_predictions(path)
    assert "and 490 more" in str(caught.value)
    assert len(str(caught.value).splitlines()) < 20


@pytest.mark.parametrize("content, message", [
    (b'{"a": "caf\xe9"}', "expected UTF-8, found byte 0xe9 at position 10"),
    (b'{"a": "x",', "line 1, column"),
    (b"", "not JSON"),
    (b'["x"]', "found an array"),
    (b'"x"', "found a text"),
    (b"3", "found a number"),
    (b"[" * 100_000, "nested too deeply"),
    (b"\xff\xfe{\x00", "expected UTF-8"),
])
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "p.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_predictions(path)
    assert str(path) in str(caught.value)


def test_missing_file_and_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_predictions(tmp_path / "none.json")
    with pytest.raises(UserError, match="No such file|found a folder"):
        read_predictions(tmp_path)


def test_a_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / "p.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": "\xe5\x8c\x97"}')
    assert read_predictions(path) == {"a": "\u5317"}


def test_question_scores_are_json_lines(tmp_path):
    references = {"q1": ["\u5317\u4eac"], "q2": ["x y", "x"]}
    write_question_scores(tmp_path / "scores.jsonl", score(references, {"q2": "x z"}), references)
    assert [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text(encoding="utf-8").splitlines()] == [
        {"id": "q1", "prediction": None, "exact_match": 0.0, "f1": 0.0, "references": ["\u5317\u4eac"]},
        {"id": "q2", "prediction": "x z", "exact_match": 0.0, "f1": pytest.approx(2 / 3), "references": ["x y", "x"]},
    ]
