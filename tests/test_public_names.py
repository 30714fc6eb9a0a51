"""The public names of the package: all exist, none is imported before it is used, and former ones still work."""

import importlib
import subprocess
import sys

import pytest

import jittor_lora
from jittor_lora.settings.run import RunConfig

FORMER_MODULES = {"config": "settings.run", "generation": "inference.generator", "loading": "session",
                  "model.sampling": "inference.sampling", "runtime": "system.runtime"}


def test_every_public_name_exists():
    for name in jittor_lora.__all__:
        assert getattr(jittor_lora, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        jittor_lora.no_such_name  # noqa: B018


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, jittor_lora; print([m for m in ('numpy', 'jittor', 'pydantic') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_former_name_is_the_present_one_with_a_warning():
    with pytest.warns(DeprecationWarning, match="jittor_lora.Loaded is now jittor_lora.Session") as warned:
        assert jittor_lora.Loaded is jittor_lora.Session
    assert warned[0].filename == __file__
    assert "Loaded" not in jittor_lora.__all__


@pytest.mark.parametrize("former, present", FORMER_MODULES.items())
def test_a_former_module_is_the_present_one_with_a_warning(former, present, monkeypatch):
    monkeypatch.delitem(sys.modules, f"jittor_lora.{former}", raising=False)
    with pytest.warns(DeprecationWarning, match=f"jittor_lora.{former} is now jittor_lora.{present}"):
        module = importlib.import_module(f"jittor_lora.{former}")
    assert module is importlib.import_module(f"jittor_lora.{present}")
    assert module.__spec__.name == f"jittor_lora.{present}"


def test_the_warning_of_a_former_module_names_the_line_that_imports_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "jittor_lora.config", raising=False)
    with pytest.warns(DeprecationWarning) as warned:
        from jittor_lora.config import RunConfig as former
    assert former is RunConfig and warned[0].filename == __file__


def test_the_configuration_of_an_adapter_is_where_it_was():
    from jittor_lora.lora.config import LoraConfig
    assert jittor_lora.LoraConfig is LoraConfig
    config = LoraConfig(4, 8.0, 0.1, ("c_attn",), "kaiming", True, False, True)
    assert (config.r, config.alpha, config.dropout, config.target_modules) == (4, 8.0, 0.1, ("c_attn",))
    assert (config.init, config.qv_only, config.use_rslora, config.use_dora) == ("kaiming", True, False, True)
    with pytest.raises(AttributeError):
        config.r = 3
