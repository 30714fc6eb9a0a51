"""An adapter finds the base it was trained on from anywhere, and accepts no other in its place."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import small_run
from jittor_lora.cli.main import main
from jittor_lora.errors import UserError
from jittor_lora.formats.base_record import RECORD_FILE, BaseRecord, Fingerprint, base_of_adapter, read_record
from jittor_lora.formats.bases import Sources, resolve_base
from jittor_lora.formats.peft import save_adapter
from jittor_lora.lora.config import LoraConfig
from jittor_lora.ops.blocks import Blocks
from jittor_lora.session import load

RANK_2 = LoraConfig(r=2, target_modules=("c_attn",))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A project with the base ./gpt2 and an adapter for it in runs/a."""
    folder = tmp_path_factory.mktemp("project")
    small_run.make_base(folder / "gpt2")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        model = load("./gpt2")
        model.add_adapter(RANK_2)
        model.save_adapter("runs/a")
    return folder


@pytest.fixture
def project(original, tmp_path, monkeypatch):
    folder = shutil.copytree(original, tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


def change(base, name="transformer.ln_f.bias"):
    """Turn the base in a folder into another model."""
    arrays = load_file(base / "model.safetensors")
    arrays[name] = arrays[name] + np.float32(1)
    save_file(arrays, base / "model.safetensors")


def found(adapter):
    wanted = base_of_adapter(adapter)
    session = load(wanted, adapter)
    return session.base.path.resolve(), session.base.name


def test_peft_files_are_unchanged_and_hold_the_given_name(project):
    assert sorted(path.name for path in (project / "runs/a").iterdir()) == \
        ["adapter_config.json", "adapter_model.safetensors", RECORD_FILE]
    assert json.loads((project / "runs/a/adapter_config.json").read_text())["base_model_name_or_path"] == "./gpt2"
    record = read_record(project / "runs/a")
    assert (record.name, record.path) == ("./gpt2", "../../gpt2")


def test_from_another_folder(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert found(project / "runs/a") == (project / "gpt2", "./gpt2")


def test_a_project_moved_as_a_whole(project, tmp_path, monkeypatch):
    shutil.move(project, tmp_path / "moved")
    monkeypatch.chdir("/")
    assert found(tmp_path / "moved/runs/a") == (tmp_path / "moved/gpt2", "./gpt2")


def test_an_adapter_that_was_moved_alone_finds_the_base_in_the_current_folder(project, tmp_path):
    shutil.move(project / "runs/a", tmp_path / "elsewhere")
    assert found(tmp_path / "elsewhere") == (project / "gpt2", "./gpt2")


def test_a_base_that_was_moved_into_the_adapter(project, tmp_path, monkeypatch):
    shutil.move(project / "gpt2", project / "runs/a/gpt2")
    (project / "runs/a" / RECORD_FILE).unlink()  # as written by PEFT
    monkeypatch.chdir(tmp_path)
    assert found(project / "runs/a") == (project / "runs/a/gpt2", "./gpt2")


def test_a_base_that_is_not_found_is_reported_with_adapter_places_and_flag(project, tmp_path, monkeypatch, capsys):
    shutil.move(project / "runs/a", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "--adapter", "elsewhere", "--prompt", "a"]) == 2
    err = capsys.readouterr().err
    assert "the adapter elsewhere: its base, ./gpt2, was not found" in err and "--base" in err
    assert "elsewhere/gpt2" in err and "Traceback" not in err


def test_another_base_of_the_same_name_is_refused(project, tmp_path, monkeypatch, capsys):
    shutil.move(project / "runs/a", tmp_path / "elsewhere")
    change(project / "gpt2")
    with pytest.raises(UserError, match=r"elsewhere: its base is called \./gpt2, .* has other weights.*--base"):
        found(tmp_path / "elsewhere")
    load("./gpt2", tmp_path / "elsewhere")  # named by the user: possibly a conversion
    assert "elsewhere was trained on ./gpt2, whose weights are not those of ./gpt2" in capsys.readouterr().err


def test_the_base_itself_gives_no_warning(project, capsys):
    shutil.copytree(project / "gpt2", project / "copy")
    load("copy", project / "runs/a")
    assert "trained on" not in capsys.readouterr().err


def test_a_run_folder_named_like_the_base_is_not_mistaken_for_it(project, tmp_path, monkeypatch):
    (tmp_path / "other/gpt2/adapter").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "other")
    assert found(project / "runs/a") == (project / "gpt2", "./gpt2")


@pytest.mark.parametrize("content", ["run", "model"])
def test_a_hub_base_is_not_mistaken_for_a_folder_of_its_name(content, project):
    """Neither a run folder nor another model with the same name."""
    settings = json.loads((project / "runs/a/adapter_config.json").read_text())
    (project / "runs/a/adapter_config.json").write_text(
        json.dumps({**settings, "base_model_name_or_path": "openai-community/gpt2"}))
    base = resolve_base("./gpt2")
    BaseRecord("openai-community/gpt2", load(base).fingerprint).write(project / "runs/a")
    (project / "openai-community/gpt2/adapter").mkdir(parents=True)
    if content == "model":
        shutil.copytree(project / "gpt2", project / "openai-community/gpt2", dirs_exist_ok=True)
    wanted = base_of_adapter(project / "runs/a")
    resolved = resolve_base(wanted, sources=Sources(cached=lambda name: project / "gpt2"))
    assert resolved.path == project / "gpt2" and not resolved.local
    assert load(resolved, project / "runs/a").adapter


def test_a_name_edited_by_hand_counts(project, tmp_path):
    shutil.copytree(project / "gpt2", tmp_path / "here")
    path = project / "runs/a/adapter_config.json"
    path.write_text(path.read_text().replace('"./gpt2"', json.dumps(str(tmp_path / "here"))))
    assert found(project / "runs/a") == (tmp_path / "here", str(tmp_path / "here"))


@pytest.mark.parametrize("content, message", [
    ("[]", "expected a JSON object"),
    ("{", "expected JSON"),
    ('{"name": "", "fingerprint": "abc", "path": 3}', "name: .*\n.*fingerprint: .*\n.*path: .*\nRemove the file"),
    ('{"name": "a\\u0000", "fingerprint": "' + "0" * 64 + '"}', "name: expected a text"),
    (" " * 70_000, "expected at most"),
])
def test_an_invalid_record_is_refused(content, message, project):
    (project / "runs/a" / RECORD_FILE).write_text(content)
    with pytest.raises(UserError, match=message):
        found(project / "runs/a")


def test_the_fingerprint_tells_weights_apart_and_not_files():
    def of(tensors):
        fingerprint = Fingerprint()
        for name, array in tensors:
            fingerprint.add(name, array)
        return fingerprint.hexdigest()

    a = np.arange(5000, dtype=np.float32).reshape(50, 100)
    b = np.ones(3, np.float32)
    whole = of([("a", a), ("b", b)])
    assert whole == of([("b", b), ("a", a.copy()), ("a", a)])
    others = [[("a", a)], [("b", a), ("a", b)], [("a", a.T), ("b", b)], [("a", a + 1), ("b", b)],
              [("a", a), ("b", np.zeros(3, np.float32))]]
    assert len({whole, *map(of, others)}) == len(others) + 1


def test_saving_over_another_adapter_removes_its_record(project):
    model = load("./gpt2", project / "runs/a")
    save_adapter(project / "runs/a", model.adapter, "some/base", "gpt2")
    assert read_record(project / "runs/a") is None


def test_the_record_of_a_combination_is_relative_to_its_own_folder(project, capsys):
    shutil.copytree(project / "runs/a", project / "runs/b")
    combine = ["adapter", "combine", "runs/a", "runs/b", "--weights", "1", "1"]
    assert main([*combine, "--output", "deep/down/c"]) == 0, capsys.readouterr().err
    assert read_record(project / "deep/down/c").path == "../../../gpt2"
    other = json.loads((project / "runs/b" / RECORD_FILE).read_text())
    (project / "runs/b" / RECORD_FILE).write_text(json.dumps({**other, "fingerprint": "0" * 64}))
    assert main([*combine, "--output", "d"]) == 0
    assert "trained on bases with different weights" in capsys.readouterr().err
    assert read_record(project / "d") is None


def test_a_run_that_was_moved_is_resumed(original, tmp_path, monkeypatch, capsys):
    """The base is found beside it, the data where the user says."""
    old = shutil.copytree(original, tmp_path / "old")
    small_run.make_squad(old / "train.json", 6)
    monkeypatch.chdir(old)
    settings = ["--batch-size", "2", "--save-every", "2", "--precision", "fp32"]
    assert main(["train", "--base", "./gpt2", "--data", "train.json", "--output", "runs/r", *settings,
                 "--max-steps", "2"]) == 0
    new = shutil.move(old, tmp_path / "new")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["train", "--resume", "--output", "new/runs/r"]) == 2
    err = capsys.readouterr().err
    assert "train.json" in err and "--data" in err
    assert main(["train", "--resume", "--output", "new/runs/r", "--data", "new/train.json"]) == 0
    assert "Resuming from" in capsys.readouterr().err
    shutil.move(f"{new}/gpt2", tmp_path / "base")
    assert main(["train", "--resume", "--output", "new/runs/r", "--data", "new/train.json"]) == 2
    assert "the run new/runs/r: its base, ./gpt2, was not found" in capsys.readouterr().err
    resumed = ["train", "--resume", "--output", "new/runs/r", "--data", "new/train.json", "--base", "base"]
    assert main(resumed) == 0
    change(tmp_path / "base")
    assert main(resumed) == 2
    assert "the base is not the one this run was started with (base)" in capsys.readouterr().err


def test_a_matrix_in_blocks_has_the_fingerprint_of_its_numbers():
    matrix = np.random.default_rng(0).standard_normal((70, 64)).astype(np.float32)
    for transposed in (False, True):
        blocks = Blocks("F16", matrix.shape, matrix.astype("<f2").view(np.uint8))
        exact, stored = Fingerprint(), Fingerprint()
        exact.add("w", blocks.decoded().T if transposed else blocks.decoded())
        stored.add_stored("w", blocks, transposed)
        assert stored.hexdigest() == exact.hexdigest()
