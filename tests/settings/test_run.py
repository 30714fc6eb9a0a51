"""Settings: defaults, precedence, refusals and their messages."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jittor_lora.data.template import DEFAULT_TEMPLATE
from jittor_lora.errors import UserError
from jittor_lora.settings import recipe
from jittor_lora.settings.run import CONTROL, RunConfig


def refused(overrides: dict, file=None) -> str:
    with pytest.raises(UserError) as caught:
        RunConfig.resolve(file, overrides)
    return str(caught.value)


@pytest.fixture
def write(tmp_path):
    def write(text: str | bytes) -> str:
        path = tmp_path / "r.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)
    return write


def test_defaults_are_the_reference_projects():
    config = RunConfig()
    assert (config.lora_r, config.lora_alpha, config.lora_dropout, config.lora_init) == (8, 16.0, 0.1, "gaussian")
    assert (config.template, config.prompt_loss_weight, config.seed) == (DEFAULT_TEMPLATE, 0.0, 42)
    assert (config.epochs, config.max_steps) == (1.0, None)


def test_command_line_over_recipe_over_default(write):
    file = write("lora_r: 4\nbatch_size: 2\n")
    config = RunConfig.resolve(file, {"lora_r": "16"})
    assert (config.lora_r, config.batch_size, config.seed) == (16, 2, 42)
    assert config.origin("lora_r") == "--lora-r"
    assert config.origin("batch_size") == f"{file}, line 2"
    assert config.origin("seed") == "default"


def test_text_is_parsed_by_the_fields_type(write):
    config = RunConfig.resolve(write("learning_rate: 1e-4\nshare_prefixes: no\nlora_use_dora: on\ndata: 2024\n"
                                     "dev: no\neval_every: 5\nlora_r: '4'\n"))
    assert (config.learning_rate, config.share_prefixes, config.lora_use_dora) == (1e-4, False, True)
    assert (config.data, config.dev, config.lora_r) == ("2024", "no", 4)


def test_all_offenders_are_reported_with_their_place(write):
    file = write("lora_r: 0\nschedule: liner\nlora_rank: 3\n")
    message = refused({"lora_dropout": "1", "epochs": "2", "max_steps": "3"}, file)
    assert message.splitlines()[0] == "5 settings cannot be used:"
    assert f'lora_r ({file}, line 1): expected a whole number from 1 to 4096, found 0' in message
    assert f'schedule ({file}, line 2): expected one of linear, cosine, constant, found "liner"' in message
    assert f"lora_rank ({file}, line 3): no such setting; did you mean lora_r" in message
    assert 'lora_dropout (--lora-dropout): expected a number from 0 to below 1, found 1.0' in message
    assert "max_steps (--max-steps): cannot be given together with epochs" in message


def test_construction_in_python_raises_the_same():
    with pytest.raises(UserError, match="2 settings"):
        RunConfig(lora_r=0, epochs=2, max_steps=3)


@pytest.mark.parametrize("name, value", [
    ("lora_r", "true"), ("lora_r", "1.5"), ("lora_r", "nan"), ("lora_r", "9" * 5000), ("learning_rate", "0"),
    ("learning_rate", "inf"), ("learning_rate", "nan"), ("prompt_loss_weight", "1.1"), ("adam_beta2", "1"),
    ("seed", "-1"), ("seed", str(2**63)), ("share_prefixes", "maybe"), ("base", ""), ("data", "a\0b"),
    ("template", "{context}\u2028{question}"),
    ("output", "\udcff"), ("target_modules", "("), ("target_modules", ["c_attn", ""]), ("target_modules", []),
    ("target_modules", {"c_attn": "1"}), ("template", "Q: {question}"), ("batch_size", None), ("epochs", "0"),
])
def test_wrong_values(name, value):
    message = refused({name: value})
    assert message.startswith("1 setting cannot be used:\n  " + name)
    assert len(message) < 400


@pytest.mark.parametrize("overrides, word", [
    ({"max_tokens": "5000"}, "max_tokens_per_stream"),
    ({"schedule": "constant", "min_learning_rate_ratio": "0.1"}, "constant schedule"),
    ({"patience": "2", "dev": "d"}, "eval_every"),
    ({"eval_every": "2"}, "needs validation data"),
    ({"qv_only": "true", "target_modules": "c_fc"}, "c_attn"),
    ({"epochs": "none"}, "both unset"),
    ({"warmup_steps": "3", "warmup_ratio": "0.1"}, "warmup_ratio"),
])
def test_conflicts(overrides, word):
    message = refused(overrides)
    assert message.startswith("1 setting cannot be used:") and word in message


def test_a_recipe_may_hold_more_than_a_run_without_validation_uses(write):
    assert RunConfig.resolve(write("eval_every: 5\nmax_dev: 10\n")).eval_every == 5


@pytest.mark.parametrize("name, meant", [
    ("lr", "learning_rate"), ("rank", "lora_r"), ("lora-alpha", "lora_alpha"), ("num_train_epochs", "epochs"),
    ("Batch_Size", "batch_size"), ("targt_modules", "target_modules"),
])
def test_nearest_name(name, meant):
    assert f"did you mean {meant}?" in refused({name: "1"})


def test_setting_one_of_a_pair_unsets_the_other(write):
    assert RunConfig(max_steps=5).epochs is None
    file = write("epochs: 3\nwarmup_ratio: 0.2\n")
    config = RunConfig.resolve(file, {"max_steps": "5", "warmup_steps": "7"})
    assert (config.epochs, config.max_steps, config.warmup_ratio, config.warmup(100)) == (None, 5, None, 7)
    # Unsetting one leaves the other unchanged.
    assert RunConfig.resolve(file, {"max_steps": "none"}).epochs == 3.0
    assert RunConfig.resolve(write("max_steps: 9\n"), {"epochs": "2"}).max_steps is None


@pytest.mark.parametrize("given, meant", [
    ("c_attn, c_proj", ["c_attn", "c_proj"]), ("c_attn", ["c_attn"]), (["mlp.c_proj"], ["mlp.c_proj"]),
    ("all-linear", "all-linear"), (r".*\.h\.[0-5]\..*c_attn", r".*\.h\.[0-5]\..*c_attn"), ("none", None), ("", None),
    (r"h\.\d{1,2}\.attn", r"h\.\d{1,2}\.attn"),
])
def test_target_modules(given, meant):
    assert RunConfig.resolve(None, {"target_modules": given}).target_modules == meant


def test_frozen():
    with pytest.raises(ValueError):
        RunConfig().lora_r = 3


names = st.text(min_size=1).filter(lambda text: not CONTROL.search(text))


@given(data=names, base=names, weight=st.floats(0, 1), rate=st.floats(1e-300, 1e300),
       modules=st.lists(st.from_regex(r"\A[a-z_.]+\Z"), min_size=1), steps=st.integers(1, 2**60))
def test_dumped_settings_read_back_equal(tmp_path_factory, data, base, weight, rate, modules, steps):
    config = RunConfig(data=data, base=base, prompt_loss_weight=weight, learning_rate=rate, target_modules=modules,
                       max_steps=steps)
    path = tmp_path_factory.getbasetemp() / "resolved.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True), encoding="utf-8")
    assert RunConfig.resolve(str(path)) == config


@pytest.mark.parametrize("name", recipe.names())
def test_shipped_recipes(name):
    config = RunConfig.resolve(name)
    text = recipe.find(name).read_text(encoding="utf-8")
    assert text.splitlines()[1].startswith("#   jittor-lora ")
    assert config.output is None or name == "quickstart"


@pytest.mark.parametrize("name, smoothing, dropout, decay", [
    ("e2e-gpt2", 0.1, 0.1, 0.01), ("webnlg-gpt2", 0.1, 0.1, 0.01), ("dart-gpt2", 0, 0, 0)])
def test_recipes_of_the_lora_paper(name, smoothing, dropout, decay):
    """Hu et al. 2021, table 11."""
    config = RunConfig.resolve(name)
    assert (config.label_smoothing, config.lora_dropout, config.weight_decay) == (smoothing, dropout, decay)
    assert (config.batch_size, config.epochs, config.warmup_steps, config.schedule) == (8, 5, 500, "linear")
    assert (config.learning_rate, config.lora_r, config.lora_alpha, config.qv_only) == (2e-4, 4, 32, True)


def test_names_of_shipped_recipes():
    assert recipe.names() == ["dart-gpt2", "e2e-gpt2", "quickstart", "reference", "squad-best", "squad-gpt2",
                              "webnlg-gpt2"]
