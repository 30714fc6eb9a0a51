"""Flags made from settings models."""

from __future__ import annotations

import json

import pytest

from jittor_lora.cli.main import Parser
from jittor_lora.cli.options import ModelOptions, SamplingOptions, add_flags, from_flags, given, require
from jittor_lora.config import RunConfig, flag
from jittor_lora.errors import UserError


def parse(settings, *arguments: str):
    parser = Parser()
    add_flags(parser, settings)
    return parser.parse_args(arguments)


@pytest.fixture(scope="module")
def help_text():
    parser = Parser()
    add_flags(parser, RunConfig, required=("data",))
    return " ".join(parser.format_help().split())


@pytest.mark.parametrize("name", list(RunConfig.model_fields))
def test_help_has_every_field_with_description_and_default(name, help_text):
    field = RunConfig.model_fields[name]
    # Words alone: the help is wrapped at spaces and hyphens.
    squeezed = help_text.replace(" ", "")
    assert flag(name) in help_text.split() or f"{flag(name)}," in help_text.split()
    assert field.description and field.description.replace(" ", "") in squeezed
    if name != "template" and field.default is not None and not isinstance(field.default, bool):
        assert f"(default:{field.default})" in squeezed


def test_help_has_groups_and_required(help_text):
    for title in ("Model:", "Data:", "LoRA:", "Training:", "Optimiser:", "Validation:", "Checkpoints and logs:"):
        assert title in help_text
    assert help_text.count("(required)") == 1


def test_only_what_is_given_is_there():
    args = parse(RunConfig, "--lora-r", "8", "--no-share-prefixes", "--tensorboard", "--target-modules", "c_attn,c_fc")
    assert given(args, RunConfig) == {"lora_r": "8", "share_prefixes": False, "tensorboard": True,
                                      "target_modules": "c_attn,c_fc"}


def test_every_flag_reaches_its_field():
    for name, field in RunConfig.model_fields.items():
        value = [] if isinstance(field.default, bool) else ["1"]
        assert list(given(parse(RunConfig, flag(name), *value), RunConfig)) == [name]


def test_settings_from_flags_name_the_flags():
    options = from_flags(parse(SamplingOptions, "--temperature", "0.7", "--top-k", "5"), SamplingOptions)
    assert (options.temperature, options.top_k, options.top_p) == (0.7, 5, 1.0)
    with pytest.raises(UserError) as caught:
        from_flags(parse(SamplingOptions, "--temperature", "-1", "--top-p", "0"), SamplingOptions)
    assert "temperature (--temperature)" in str(caught.value) and "top_p (--top-p)" in str(caught.value)


def test_greedy_takes_no_drawing_settings():
    with pytest.raises(UserError, match="temperature is 0"):
        SamplingOptions(top_k=5)


def test_require_lists_all_that_is_missing():
    with pytest.raises(UserError) as caught:
        require(RunConfig(dev="d"), "data", "dev", "output")
    assert "--data " in str(caught.value) and "--output " in str(caught.value) and "--dev" not in str(caught.value)


def test_adapter_folder_or_run_folder(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(
        {"peft_type": "LORA", "target_modules": ["c_attn"], "base_model_name_or_path": "gpt2"}))
    for adapter in (tmp_path, tmp_path / "adapter"):
        options = ModelOptions(adapter=str(adapter))
        assert options.adapter_folder() == tmp_path / "adapter"
        assert options.wanted_base().name == "gpt2"
    assert ModelOptions(base="b", adapter=str(tmp_path)).wanted_base() == "b"
    assert (ModelOptions().wanted_base(), ModelOptions().adapter_folder()) == ("auto", None)


@pytest.mark.parametrize("make, message", [
    (lambda folder: None, "no such folder"),
    (lambda folder: folder.mkdir(), "neither in it"),
    (lambda folder: folder.write_text(""), "no such folder"),
])
def test_no_adapter(make, message, tmp_path):
    make(tmp_path / "a")
    with pytest.raises(UserError, match=message):
        ModelOptions(adapter=str(tmp_path / "a")).wanted_base()


def test_adapter_that_names_no_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "target_modules": ["c_attn"]}')
    with pytest.raises(UserError, match="give --base"):
        ModelOptions(adapter=str(tmp_path)).wanted_base()
