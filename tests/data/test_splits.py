"""The files of a split among those of a data set."""

from __future__ import annotations

import pytest

from jittor_lora.data.splits import choose_files
from jittor_lora.errors import UserError

PARTS = [f"data/train-0000{i}-of-00003.parquet" for i in range(3)]
USUAL = ["README.md", ".gitattributes", "dataset_infos.json", *PARTS, "data/test-00000-of-00001.parquet"]


@pytest.mark.parametrize("files, named, split, expected", [
    (USUAL, None, "train", PARTS),
    (USUAL[::-1], None, "train", PARTS),
    (USUAL, "test", "dev", ["data/test-00000-of-00001.parquet"]),
    (["train.jsonl", "dev.jsonl"], None, "dev", ["dev.jsonl"]),
    (["train.json", "validation.json"], None, "dev", ["validation.json"]),
    (["train.csv", "val.csv"], "validation", "train", ["val.csv"]),
    (["x/train.jsonl", "x/train.parquet", "x/train.csv"], None, "train", ["x/train.parquet"]),
    (["alpaca_data.json", "LICENSE"], None, "train", ["alpaca_data.json"]),
    (["squad_train.json", "squad_dev.json"], None, "train", ["squad_train.json"]),
    (["train/0.parquet", "train/1.parquet", "test/0.parquet"], None, "train", ["train/0.parquet", "train/1.parquet"]),
    (["data/train_sft-00000-of-00001.parquet", "data/train_gen-00000-of-00001.parquet"], "train_sft", "train",
     ["data/train_sft-00000-of-00001.parquet"]),
    (["constrained.jsonl", "train.jsonl"], None, "train", ["train.jsonl"]),
])
def test_the_usual_names(files, named, split, expected):
    assert choose_files(files, "o/n", None, named, split).files == expected


@pytest.mark.parametrize("inner, files, expected", [
    ("data/b.jsonl", ["data/a.jsonl", "data/b.jsonl"], ["data/b.jsonl"]),
    ("README.md", ["README.md"], ["README.md"]),
    ("b", ["a/train.jsonl", "b/train.jsonl", "bc/train.jsonl"], ["b/train.jsonl"]),
])
def test_a_file_or_a_folder(inner, files, expected):
    assert choose_files(files, "o/n", inner, None, "train").files == expected


@pytest.mark.parametrize("files, shown", [
    (USUAL, "o/n/data/train-*-of-00003.parquet"), (["train.jsonl"], "o/n/train.jsonl"),
    (["train/0.csv", "train/1.csv"], "o/n/train/*.csv"),
    (["train-0-of-2.csv", "train-1-of-2.csv"], "o/n/train-*-of-2.csv"),
])
def test_the_name_in_messages(files, shown):
    assert choose_files(files, "o/n", None, None, "train").shown == shown


@pytest.mark.parametrize("files, inner, named, message", [
    (USUAL, None, "dev", "hub:o/n: no data file of the split dev. Its files: data/train-00000-of-00003.parquet, "),
    ([], None, None, "no data file of the split train. Its files: none."),
    (["a.jsonl", "b.jsonl"], None, None, "Name a split (hub:o/n:test) or a file (hub:o/n/a.jsonl)."),
    (["a/train.jsonl", "b/train.jsonl"], None, None, "hub:o/n: several files fit the split train. Name one, its "
     "folder, or another split: hub:o/n/a/train.jsonl, hub:o/n/b/train.jsonl"),
    (["data/train.jsonl"], "data/trian.jsonl", None, "no such file or folder; did you mean data/train.jsonl?"),
    (PARTS[:2], None, None, "expected 3 parts like data/train-00000-of-00003.parquet; found 2"),
    ([f"{i}.jsonl" for i in range(50)], None, None, "and 38 more."),
])
def test_what_is_refused(files, inner, named, message):
    with pytest.raises(UserError) as caught:
        choose_files(files, "o/n", inner, named, "train")
    assert message in str(caught.value)
