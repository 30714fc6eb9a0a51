"""A loaded model and its adapters, as a program uses them."""

from __future__ import annotations

import json

import pytest

import small_run
from jittor_lora.errors import UserError
from jittor_lora.lora.config import LoraConfig
from jittor_lora.session import load

FEW = LoraConfig(r=2, target_modules=("c_attn",))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(small_run.make_base(tmp_path_factory.mktemp("loading") / "base"))


def test_the_active_adapter_is_saved(base, tmp_path):
    model = load(base)
    assert model.adapter is None
    with pytest.raises(UserError, match="no adapter is active"):
        model.save_adapter(tmp_path)
    first = model.add_adapter(FEW, "first")
    second = model.add_adapter(LoraConfig(r=3, target_modules=("c_fc",)), "second")
    assert model.adapter is first
    model.set_adapter(["second"])
    assert model.adapter is second
    model.save_adapter(tmp_path / "one")
    assert json.loads((tmp_path / "one/adapter_config.json").read_text())["r"] == 3
    model.save_adapter(tmp_path / "other", "first")
    assert json.loads((tmp_path / "other/adapter_config.json").read_text())["r"] == 2
    model.set_adapter(["first", "second"])
    with pytest.raises(UserError, match="first, second are active together"):
        model.save_adapter(tmp_path)
    with pytest.raises(UserError, match="adapter third: not found; there is first, second"):
        model.save_adapter(tmp_path, "third")


def test_folders_of_named_adapters(base, tmp_path):
    model = load(base)
    for name in ("default", "town"):
        model.add_adapter(FEW, name)
    model.save_adapters(tmp_path)
    assert sorted(path.parent.name for path in tmp_path.rglob("adapter_config.json")) == sorted([tmp_path.name, "town"])
    assert [adapter.name for adapter in load(base).load_adapters(tmp_path)] == ["default", "town"]
    assert [adapter.name for adapter in load(base, tmp_path / "town").adapters.values()] == ["default"]
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(UserError, match="found folders with one: town"):
        load(base, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="here or one folder below; found none"):
        load(base).load_adapters(tmp_path / "empty")
    model.add_adapter(FEW, "a/b")
    with pytest.raises(UserError, match="adapter a/b: expected a name of letters, digits"):
        model.save_adapters(tmp_path / "more")
    assert not (tmp_path / "more").exists()


def test_merging_is_measured(base):
    model = load(base)
    adapter = model.add_adapter(FEW)
    adapter.load({name: p.numpy() + 0.1 for name, p in adapter.parameters().items()})
    assert 0 < model.merge() < 1e-4
    model.unmerge()
    with pytest.raises(UserError, match="more than the tolerance of 1e-12"):
        model.merge(tolerance=1e-12)
    assert not any(getattr(leaf, "merged", False) for leaf in vars(model.model).values())
