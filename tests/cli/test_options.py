"""Flags made from settings models."""

from __future__ import annotations

import argparse
import importlib
import json
import re
from typing import Optional

import pytest
import yaml

from jittor_lora.cli.adapter import ACTIONS
from jittor_lora.cli.flags import add_flags, from_flags, given, require
from jittor_lora.cli.main import VERBS, Parser, main
from jittor_lora.cli.options import ModelOptions, SamplingOptions
from jittor_lora.errors import UserError
from jittor_lora.settings.base import PATH, TEXT, VERBATIM, Settings
from jittor_lora.settings.run import RunConfig
from jittor_lora.settings.text import flag

MODULES = {verb: importlib.import_module(f"jittor_lora.cli.{verb}") for verb in VERBS}
# Settings whose text is neither a path nor free: names, lists of names, and titles.
NAMES = {"host", "lora_init", "precisions", "modes", "parts", "formats", "tools", "against", "title",
         "platform"}
PATHS = re.compile(r"FILE|DIR|FOLDER|R\.yaml|SOURCE|TARGET|PREDICTIONS|SCRIPT|TRAIN_LOG|PYTHON")


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
    args = parse(RunConfig, "--lora-r", "8", "--no-share-prefixes", "--lora-use-dora", "--target-modules",
                 "c_attn,c_fc")
    assert given(args, RunConfig) == {"lora_r": "8", "share_prefixes": False, "lora_use_dora": True,
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
        base, source = options.base_and_adapter()
        assert base.name == "gpt2"
        assert source.folder == tmp_path / "adapter" and source.settings["target_modules"] == ["c_attn"]
    assert ModelOptions(base="b", adapter=str(tmp_path)).base_and_adapter()[0] == "b"
    assert ModelOptions().base_and_adapter() == ("auto", None)


@pytest.mark.parametrize("make, message", [
    (lambda folder: None, "no such folder"),
    (lambda folder: folder.mkdir(), "neither in it"),
    (lambda folder: folder.write_text(""), "another file"),
])
def test_no_adapter(make, message, tmp_path):
    make(tmp_path / "a")
    with pytest.raises(UserError, match=message):
        ModelOptions(adapter=str(tmp_path / "a")).base_and_adapter()


def test_adapter_that_names_no_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "target_modules": ["c_attn"]}')
    with pytest.raises(UserError, match="give --base"):
        ModelOptions(adapter=str(tmp_path)).base_and_adapter()


def models(model=Settings):
    """The settings models of all verbs."""
    for one in model.__subclasses__():
        if one.__module__.startswith("jittor_lora."):
            yield one
            yield from models(one)


MODELS = sorted(set(models()), key=lambda model: model.__name__)


def fields(kind):
    return [(model, name) for model in MODELS for name in model.holding(kind)]


def from_line(model, name, value):
    """The setting as the command line sets it, together with what the model requires."""
    others = ["--prompt", "p"] if model.__name__ == "GenerateOptions" and name != "file" else []
    return getattr(from_flags(parse(model, f"{flag(name)}={value}", *others), model), name)


def test_every_text_setting_says_what_it_holds():
    assert {"RunConfig", "CurveConfig", "BenchConfig", "GenerateOptions"} <= {model.__name__ for model in MODELS}
    texts = {(model, name) for model in MODELS for name, field in model.model_fields.items()
             if field.annotation in (str, Optional[str])}
    assert {name for model, name in texts - {*fields(PATH), *fields(TEXT), *fields(VERBATIM)}} == NAMES


@pytest.mark.parametrize("model, name", fields(PATH), ids=lambda value: getattr(value, "__name__", value))
def test_a_path_may_begin_with_the_home_folder(model, name, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/somewhere")
    assert from_line(model, name, "~/x") == "/somewhere/x"
    assert from_line(model, name, "./~/x") == "./~/x"
    if issubclass(model, RunConfig):
        (tmp_path / "recipe.yaml").write_text(f"{name}: ~/x\n")
        assert getattr(model.resolve(str(tmp_path / "recipe.yaml")), name) == "/somewhere/x"
        assert getattr(model(**{name: "~/x"}), name) == "/somewhere/x"


# The paths among the arguments that are no settings: a command line, and where the parsed path ends up.
PATH_ARGUMENTS = [
    ("train --config PATH", "config"), ("curve --config PATH", "config"),
    ("align --config PATH", "config"), ("align --twin PATH", "twin"), ("align --with PATH", "log"),
    ("align --python PATH", "python"),
    ("plot PATH", "run_folder"), ("plot --train-loss PATH", "train_loss"), ("plot --val-loss PATH", "val_loss"),
    ("plot --metrics PATH", "metrics"), ("plot --font PATH", "font"), ("plot --output PATH", "output"),
    ("compare PATH", "predictions"), ("compare --adapters PATH", "adapters"),
    ("evaluate --ensemble PATH", "ensemble"), ("generate --ensemble PATH", "ensemble"),
    ("serve --adapter PATH", "adapter"), ("serve --adapters-from PATH", "adapters_from"),
    ("adapter list PATH", "folder"), ("adapter info PATH", "adapter"), ("adapter info a --heat-map PATH", "heat_map"),
    ("adapter diff PATH b", "first"), ("adapter diff a PATH", "second"), ("adapter combine PATH", "adapters"),
    ("adapter combine a --output PATH", "output"), ("adapter convert PATH b", "source"),
    ("adapter convert a PATH", "target"),
]
OPTIONAL_BASE = ("adapter convert a b --base PATH", "base")  # a name or a path


def parsed(monkeypatch, line: str, path: str) -> argparse.Namespace:
    """The arguments as the verb gets them."""
    words, got = line.replace("PATH", path).split(), []
    monkeypatch.setattr(MODULES[words[0]], "run", lambda args: got.append(args) or 0)
    assert main(words) == 0
    return got[0]


@pytest.mark.parametrize("line, name", [*PATH_ARGUMENTS, OPTIONAL_BASE])
def test_so_may_the_path_of_an_argument_that_is_no_setting(line, name, monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    found = getattr(parsed(monkeypatch, line, "~/x"), name)
    assert str(found[0] if isinstance(found, list) else found) == "/somewhere/x"


@pytest.mark.parametrize("line, name", [case for case in PATH_ARGUMENTS if case[1] in (
    "metrics", "predictions") or case[0].startswith(("compare", "serve --adapter "))])
def test_so_may_a_named_path(line, name, monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert getattr(parsed(monkeypatch, line, "a=~/x"), name) == ["a=/somewhere/x"]


def test_no_path_argument_is_forgotten(capsys):
    settings = {flag(name) for _, name in fields(PATH)}
    shown = []
    for words in [*([verb] for verb in VERBS), *(["adapter", action] for action in ACTIONS)]:
        assert main([*words, "--help"]) == 0
        for name, metavar in re.findall(r"^  (--[a-z-]+)?[ ]?(\S+)?", capsys.readouterr().out, re.MULTILINE):
            if PATHS.search(metavar) and (name not in settings or words[0] in ("plot", "adapter")
                                            or (*words, name) == ("serve", "--adapter")):
                shown.append((*words, name or metavar))
    assert len(shown) == len(PATH_ARGUMENTS), shown


@pytest.mark.parametrize("model, name", fields(TEXT), ids=lambda value: getattr(value, "__name__", value))
def test_a_text_has_its_line_breaks_as_the_help_shows_them(model, name, tmp_path):
    written = r"{context}\n{question}\t\\n\alpha"
    meant = "{context}\n{question}\t\\n\\alpha"
    assert from_line(model, name, written) == meant
    assert from_line(model, name, meant.replace("\\n", r"\\n")) == meant  # a real line break stays one
    assert r"\n is a line break, \\ a backslash" in model.model_fields[name].description
    if issubclass(model, RunConfig):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(f"{name}: '{written}'\n")
        config = model.resolve(str(recipe))
        assert getattr(config, name) == meant
        recipe.write_text(yaml.safe_dump(config.recipe(), sort_keys=False))  # as a run writes its settings
        assert model.resolve(str(recipe)) == config
        assert getattr(model(**{name: meant}), name) == meant  # Python has escapes of its own


@pytest.mark.parametrize("model, name", fields(VERBATIM), ids=lambda value: getattr(value, "__name__", value))
def test_a_prompt_is_taken_as_it_stands(model, name):
    extra = {"question": ["--context", "c"], "context": ["--question", "q"], "system": ["--prompt", "p"]}.get(name, [])
    text = r'printf("a\n"); $\nu$'
    assert getattr(from_flags(parse(model, flag(name), text, *extra), model), name) == text
