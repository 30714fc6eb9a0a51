"""Adapters to PEFT and back."""

from __future__ import annotations

import re

import numpy as np
import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors.numpy import load_file

import tiny
from jittor_lora.data.layout import Layout
from jittor_lora.errors import UserError
from jittor_lora.formats.adapter_folder import WEIGHTS_FILE
from jittor_lora.formats.peft import load_adapter, save_adapter
from jittor_lora.lora.config import ALL_LINEAR, DEFAULT_TARGETS, LoraConfig
from jittor_lora.lora.init import initial_pair
from jittor_lora.lora.inject import inject
from jittor_lora.lora.merge import MergedTensors
from jittor_lora.lora.targets import match_targets
from jittor_lora.model.load import build_model
from jittor_lora.system.runtime import jt
from parity import reference

pytestmark = pytest.mark.parity

TOKENS = tiny.tokens(30)


def ours(source):
    return build_model(tiny.config(source), tiny.tensors(source))


def theirs(source):
    return reference.network(source, tiny.tensors(source))


def logits(model):
    with jt.no_grad():
        hidden = model.hidden(TOKENS, np.arange(len(TOKENS), dtype=np.int32), Layout.plain(len(TOKENS)))
        return model.logits(hidden).numpy()


def assert_same_logits(model, peft_model, base):
    found, expected = logits(model), reference.logits(peft_model, TOKENS)
    np.testing.assert_allclose(found, expected, atol=5e-5)
    assert np.abs(expected - base).max() > 0.5  # the adapter matters


@pytest.fixture(params=["gpt2", "llama", "llama-untied", "mistral", "qwen2", "qwen3"])
def source(request):
    return tiny.VARIANTS[request.param]


def default_targets(source):
    return DEFAULT_TARGETS[source["model_type"]]


@pytest.mark.parametrize("targets", [None, "few", "expression", ALL_LINEAR])
def test_peft_loads_our_adapter(tmp_path, source, targets):
    names = default_targets(source)
    targets = {None: names, "few": names[:1], "expression": rf".*\.[01]\..*\.({names[0]}|{names[1]})"}.get(targets,
                                                                                                           targets)
    model = ours(source)
    base = logits(model)
    adapter = inject(model, LoraConfig(r=3, alpha=5.0, dropout=0.3, target_modules=targets))
    adapter.load(tiny.adapter_arrays({name: tuple(p.shape) for name, p in adapter.parameters().items()}))
    save_adapter(tmp_path, adapter, "base", source["model_type"])
    loaded = peft.PeftModel.from_pretrained(theirs(source), tmp_path).eval()
    assert_same_logits(model, loaded, base)
    assert {p.data.numpy().tobytes() for name, p in loaded.named_parameters() if "lora_" in name} == {
        p.numpy().tobytes() for p in adapter.parameters().values()}


@pytest.mark.parametrize("targets", [None, ALL_LINEAR, r".*\.0\..*proj"])
def test_we_load_pefts_adapter_and_write_the_same_tensors(tmp_path, source, targets):
    config = LoraConfig(r=3, alpha=5.0, dropout=0.3, target_modules=targets or default_targets(source))
    wrapped = reference.adapted(theirs(source), config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.2)
    wrapped.save_pretrained(tmp_path / "theirs")
    model = ours(source)
    base = logits(model)
    adapter = load_adapter(tmp_path / "theirs", model)
    assert (adapter.config.r, adapter.config.alpha, adapter.config.dropout) == (3, 5.0, 0.3)
    assert_same_logits(model, wrapped, base)
    save_adapter(tmp_path / "ours", adapter, "base", source["model_type"])
    before, after = load_file(tmp_path / "theirs" / WEIGHTS_FILE), load_file(tmp_path / "ours" / WEIGHTS_FILE)
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert (after[name].dtype, after[name].shape) == (array.dtype, array.shape)
        assert after[name].tobytes() == array.tobytes(), name
    again = peft.PeftModel.from_pretrained(theirs(source), tmp_path / "ours").eval()
    np.testing.assert_array_equal(reference.logits(again, TOKENS), reference.logits(wrapped, TOKENS))


def test_what_is_merged_is_the_same(tmp_path, source):
    config = LoraConfig(r=3, alpha=5.0, target_modules=default_targets(source))
    model = ours(source)
    adapter = inject(model, config)
    values = tiny.adapter_arrays({name: tuple(p.shape) for name, p in adapter.parameters().items()})
    adapter.load(values)
    merged = MergedTensors(tiny.tensors(source), model)
    expected = reference.adapted(theirs(source), config, values).merge_and_unload().state_dict()
    for name, array in merged.items():
        np.testing.assert_allclose(array, expected[name].numpy(), rtol=1e-6, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(logits(build_model(tiny.config(source), merged)), logits(model), atol=5e-5)


def test_peft_reads_qv_only_as_it_acts(tmp_path):
    source = tiny.GPT2
    model = ours(source)
    base = logits(model)
    adapter = inject(model, LoraConfig(r=3, target_modules=("c_attn",), qv_only=True))
    adapter.load(tiny.adapter_arrays({name: tuple(p.shape) for name, p in adapter.parameters().items()}))
    save_adapter(tmp_path, adapter, "base", "gpt2")
    assert_same_logits(model, peft.PeftModel.from_pretrained(theirs(source), tmp_path).eval(), base)


PARTS = st.sampled_from(["h", "0", "1", "10", "attn", "c_attn", "c", "attn_c", "mlp", "c_proj", "proj"])
NAMES = st.lists(PARTS, min_size=1, max_size=4).map(".".join)


@given(st.lists(NAMES, min_size=1, max_size=6, unique=True), st.lists(NAMES, min_size=1, max_size=3, unique=True))
def test_names_select_as_in_peft(names, targets):
    expected = [n for n in names if check_target_module_exists(peft.LoraConfig(target_modules=targets), n)]
    idle = [t for t in targets if not any(n == t or n.endswith("." + t) for n in names)]
    if idle:  # PEFT refuses only if none matches
        with pytest.raises(UserError, match=re.escape(", ".join(idle))):
            match_targets(names, LoraConfig(target_modules=tuple(targets)))
        targets = [t for t in targets if t not in idle]
    assert (match_targets(names, LoraConfig(target_modules=tuple(targets))) if targets else []) == expected


@pytest.mark.parametrize("pattern", [r".*attn", r"attn", r"h\.\d\..*", r".*\.(c_attn|c_proj)", r"h|h\.0", "h.1.mlp"])
def test_expressions_select_as_in_peft(pattern):
    names = [f"h.{i}.{name}" for i in (0, 1, 10) for name in ("attn.c_attn", "attn.c_proj", "mlp", "mlp.c_proj")]
    config = peft.LoraConfig(target_modules=pattern)
    expected = [name for name in names if check_target_module_exists(config, name)]
    if expected:
        assert match_targets(names, LoraConfig(target_modules=pattern)) == expected
    else:
        with pytest.raises(UserError):
            match_targets(names, LoraConfig(target_modules=pattern))


@pytest.mark.parametrize("init", ["gaussian", "kaiming"])
def test_starts_have_the_distribution_of_pefts(init):
    config = LoraConfig(r=8, init=init, target_modules=("c_fc",))
    linear = torch.nn.ModuleDict({"c_fc": torch.nn.Linear(4096, 8)})
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(linear, peft.LoraConfig(
        r=8, target_modules=["c_fc"], init_lora_weights="gaussian" if init == "gaussian" else True))
    (a,) = [p.detach().numpy() for name, p in wrapped.named_parameters() if "lora_A" in name]
    mine, _ = initial_pair(config, "c_fc", 0, (8, 4096), lambda: None)
    assert mine.std() == pytest.approx(a.std(), rel=0.03)
    for quantile in (0.01, 0.1, 0.25, 0.75, 0.9, 0.99):
        assert np.quantile(mine, quantile) == pytest.approx(np.quantile(a, quantile), abs=0.05 * a.std())


BLOCKS = st.sampled_from(["transformer.h.0", "transformer.h.1", "transformer.h.10", "model.layers.2", "h.3", "wte"])
LEAVES = st.sampled_from(["attn.c_attn", "attn.c_proj", "mlp.c_proj", "c_fc", "ln_1"])
WHOLE = st.builds("{}.{}".format, BLOCKS, LEAVES)


@given(st.lists(WHOLE, min_size=1, max_size=8, unique=True),
       st.lists(st.one_of(WHOLE, st.sampled_from(["c_attn", "c_proj", "mlp.c_proj", "0.attn.c_attn"])), min_size=1,
                max_size=3, unique=True),
       st.lists(st.sampled_from(["c_proj", "attn.c_proj", "transformer.h.0.attn.c_attn"]), max_size=2, unique=True),
       st.one_of(st.none(), st.lists(st.integers(0, 3), min_size=1, max_size=2, unique=True)),
       st.one_of(st.none(), st.sampled_from([["h"], ["layers"], ["h", "layers"]])),
       st.lists(st.sampled_from(["ln_1", "h.1", "mlp"]), max_size=2, unique=True))
def test_exclusions_and_layers_select_as_in_peft(names, targets, excluded, layers, pattern, saved):
    pattern = pattern if layers else None
    theirs = peft.LoraConfig(target_modules=targets, exclude_modules=excluded or None, layers_to_transform=layers,
                             layers_pattern=pattern, modules_to_save=saved or None)
    expected = [name for name in names if check_target_module_exists(theirs, name)]
    targets = [t for t in targets if any(name == t or name.endswith("." + t) for name in names)]
    if not targets:
        return
    ours = LoraConfig(target_modules=tuple(targets), exclude_modules=tuple(excluded), modules_to_save=tuple(saved),
                      layers_to_transform=tuple(layers) if layers else None,
                      layers_pattern=tuple(pattern) if pattern else None)
    if expected:
        assert match_targets(names, ours) == expected
    else:
        with pytest.raises(UserError, match="nothing remains"):
            match_targets(names, ours)


@given(WHOLE, st.lists(st.sampled_from(["c_attn", "attn.c_attn", r".*\.0\..*", r"h\.\d+\.mlp\.c_proj", "c_proj|c_fc",
                                        r"^transformer\.h\.1\.attn\.c_attn", "c_att", "ln"]), max_size=4, unique=True))
def test_patterns_give_ranks_and_alphas_as_in_peft(name, keys):
    pattern = {key: number + 1 for number, key in enumerate(keys)}
    config = LoraConfig(r=16, alpha=32.0, rank_pattern=pattern, alpha_pattern={k: 3.0 * r for k, r in pattern.items()})
    rank = pattern.get(get_pattern_key(pattern, name), 16)
    assert config.rank_of(name) == rank
    assert config.scaling_of(name) == (3.0 * rank if get_pattern_key(pattern, name) in pattern else 32.0) / rank
