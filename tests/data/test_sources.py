from __future__ import annotations

import json

import pytest

from jittor_lora.data import sources
from jittor_lora.data.formats import is_squad
from jittor_lora.data.jsonl import PromptData
from jittor_lora.data.sources import load_data, resolve_data
from jittor_lora.data.squad import SquadData
from jittor_lora.errors import UserError


def test_the_sample_has_two_parts():
    assert resolve_data("sample") == resolve_data("sample-train") == sources.SHIPPED["sample-train"]
    assert resolve_data("sample", "dev") == resolve_data("sample-dev") == sources.SHIPPED["sample-dev"]
    assert len(load_data("sample", "dev")) == 3905


def test_official_files_are_fetched_to_the_cache(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(sources, "fetch", lambda remote, path, advice: asked.append((remote, path, advice)) or path)
    assert resolve_data("squad", "dev", cache=tmp_path) == tmp_path / "dev-v1.1.json"
    assert resolve_data("squad-train", "dev", cache=tmp_path) == tmp_path / "train-v1.1.json"
    assert [remote.size for remote, _, _ in asked] == [4_854_279, 30_288_272]
    assert all(remote.url.startswith("https://") for remote, _, _ in asked)
    assert asked[0][2] == f"Place the file at {tmp_path / 'dev-v1.1.json'} by hand, or use the shipped sample: " \
                          "--data sample-dev."


def test_files_of_webnlg_and_dart_are_fetched_where_a_checksum_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "fetch", lambda remote, path, advice: (path, advice))
    for name, split, file in (("webnlg", "dev", "webnlg-2017-dev.json"),
                              ("dart", "train", "dart-v1.1.1-full-train.json"),
                              ("dart-test", "train", "dart-v1.1.1-full-test.json")):
        target = tmp_path / file
        assert resolve_data(name, split, cache=tmp_path) == (target, f"Place the file at {target} by hand.")
    for name, split, file in (("webnlg", "train", "train.json"), ("webnlg-test", "dev", "test.json")):
        with pytest.raises(UserError, match=f"{name}: not downloaded, as no checksum .* https://.*2017/{file} and"):
            resolve_data(name, split, cache=tmp_path)
    assert len({remote.file_name for remote in sources.OFFICIAL.values()}) == len(sources.OFFICIAL)


def test_a_file_takes_precedence_over_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sample").mkdir()
    assert resolve_data("sample") == sources.SHIPPED["sample-train"]
    (tmp_path / "sample-dev").write_text("{}")
    assert not resolve_data("sample-dev").is_absolute()


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("sqad-train", "did you mean squad-train?"),
        ("sample_dev", "did you mean sample-dev?"),
        ("{folder}/trian.json", "did you mean {folder}/train.json?"),
        ("zzz", "no such file or data set. Data sets: squad-train, "),
        ("nowhere/at/all.json", "no such file"),
    ],
)
def test_the_nearest_name_is_suggested(tmp_path, name, suggestion):
    (tmp_path / "train.json").touch()
    with pytest.raises(UserError) as caught:
        resolve_data(name.format(folder=tmp_path))
    assert suggestion.format(folder=tmp_path) in str(caught.value)


def test_a_folder_is_not_data(tmp_path):
    with pytest.raises(UserError, match="a folder, expected a file"):
        resolve_data(str(tmp_path))


SQUAD = {"data": [{"paragraphs": [{"context": "a", "qas": [
    {"id": "1", "question": "q", "answers": [{"text": "a", "answer_start": 0}]}]}]}], "version": "1.1"}
ROW = {"prompt": 'say "data"', "completion": "b"}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (json.dumps(SQUAD), SquadData),
        (json.dumps(SQUAD) + "\n", SquadData),
        (json.dumps(SQUAD, indent=2), SquadData),
        ("\ufeff" + json.dumps(SQUAD), SquadData),
        ("\n" + json.dumps(ROW), PromptData),
        (json.dumps(ROW) + "\n" + json.dumps({**ROW, "id": "x"}) + "\n", PromptData),
        (json.dumps({"completion": "b", "prompt": "p"}), PromptData),
        (json.dumps({"note": 1, **ROW}) + "\n" + json.dumps(ROW), PromptData),
    ],
)
def test_the_format_is_told_by_the_content(tmp_path, text, kind):
    path = tmp_path / "file"
    path.write_text(text, encoding="utf-8")
    assert isinstance(load_data(str(path)), kind)


@pytest.mark.parametrize("text", ['{"prompt": "cut o', '{"prompt": "a"}\n{', '["a"]\n["b"]'])
def test_broken_json_lines_are_reported_as_lines(tmp_path, text):
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(UserError, match="line 1"):
        load_data(str(path))


def test_what_is_not_json_is_neither(tmp_path):
    path = tmp_path / "file"
    path.write_text("name[The Eagle], food[French] The Eagle is French.")
    with pytest.raises(UserError, match="expected JSON, JSON Lines, CSV or TSV.*starts with 'name"):
        load_data(str(path))
    assert is_squad("{\n")
