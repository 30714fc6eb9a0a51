from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tiny
from jittor_lora.errors import UserError
from jittor_lora.files.patterns import wrong_amount
from jittor_lora.formats.adapter_folder import CONFIG_FILE, WEIGHTS_FILE, read_adapter_folder
from jittor_lora.formats.adapter_source import open_adapter
from jittor_lora.formats.base_record import base_of_adapter
from jittor_lora.formats.peft import load_adapter, save_adapter
from jittor_lora.lora.config import ALL_LINEAR, DEFAULT_TARGETS, LoraConfig
from jittor_lora.lora.inject import inject
from jittor_lora.model.load import build_model
from jittor_lora.model.modules import leaf_modules


def network(family="gpt2", **changes):
    source = {**tiny.VARIANTS[family], **changes}
    return build_model(tiny.config(source), tiny.tensors(source))


def adapted(family="gpt2", **settings):
    adapter = inject(network(family), LoraConfig(**{"r": 2, "target_modules": DEFAULT_TARGETS[family], **settings}))
    adapter.load(tiny.adapter_arrays({name: tuple(p.shape) for name, p in adapter.parameters().items()}))
    return adapter


@pytest.fixture
def folder(tmp_path):
    """An adapter as PEFT writes it: its keys, and the settings that affect the result."""
    arrays = {f"base_model.model.{name}.weight": p.numpy() for name, p in adapted().parameters().items()}
    save_file(arrays, tmp_path / WEIGHTS_FILE, {"format": "pt"})
    write_config(tmp_path)
    return tmp_path


def write_config(folder, **changes):
    values = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 16, "lora_dropout": 0.05,
              "target_modules": ["c_proj", "c_attn", "c_fc"], "fan_in_fan_out": True, "bias": "none",
              "init_lora_weights": True, "use_rslora": False, "rank_pattern": {}, "modules_to_save": None,
              "peft_version": "0.21.2", **changes}
    (folder / CONFIG_FILE).write_text(json.dumps({k: v for k, v in values.items() if v != "absent"}))


def refusal(folder, model=None):
    model = model or network()
    with pytest.raises(UserError) as caught:
        load_adapter(folder, model)
    message = str(caught.value)
    assert str(folder) in message
    return message


def test_an_open_adapter_is_not_read_again(folder):
    write_config(folder, base_model_name_or_path="some/base", r=2)
    source = open_adapter(folder)
    (folder / CONFIG_FILE).write_text("not JSON")
    assert base_of_adapter(source).name == "some/base"
    assert load_adapter(source, network()).config.r == 2
    with pytest.raises(UserError, match="The base named in its adapter_config.json: some/base"):
        load_adapter(source, network("llama"))


# --- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_round_trip_keeps_every_value_and_setting(tmp_path, family):
    adapter = adapted(family, alpha=5.0, dropout=0.25, init="kaiming")
    save_adapter(tmp_path, adapter, "some/base", family)
    again = load_adapter(tmp_path, network(family))
    assert again.config == LoraConfig(r=2, alpha=5.0, dropout=0.25, init="kaiming",
                                      target_modules=tuple(sorted(DEFAULT_TARGETS[family])))
    assert list(again.versions) == list(adapter.versions)
    for name, parameter in adapter.parameters().items():
        assert again.parameters()[name].numpy().tobytes() == parameter.numpy().tobytes()


def test_settings_as_peft_names_them(tmp_path):
    for family, transposed in (("gpt2", True), ("llama", False)):
        save_adapter(tmp_path, adapted(family, alpha=5.0, dropout=0.25), "some/base", family)
        values = json.loads((tmp_path / CONFIG_FILE).read_text())
        assert (values["peft_type"], values["task_type"], values["r"]) == ("LORA", "CAUSAL_LM", 2)
        assert (values["lora_alpha"], values["lora_dropout"], values["bias"]) == (5.0, 0.25, "none")
        assert (values["base_model_name_or_path"], values["init_lora_weights"]) == ("some/base", "gaussian")
        assert values["fan_in_fan_out"] is transposed
        assert values["target_modules"] == sorted(DEFAULT_TARGETS[family])


@pytest.mark.parametrize("targets", [ALL_LINEAR, r".*\.(attn|mlp)\.c_proj"])
def test_targets_given_as_one_text_stay_one(tmp_path, targets):
    save_adapter(tmp_path, adapted(target_modules=targets), "base", "gpt2")
    assert json.loads((tmp_path / CONFIG_FILE).read_text())["target_modules"] == targets
    assert load_adapter(tmp_path, network()).config.target_modules == targets


def test_saving_what_was_loaded_gives_the_same_file(folder, tmp_path):
    """Byte for byte, as safetensors itself writes it."""
    before = (folder / WEIGHTS_FILE).read_bytes()
    adapter = load_adapter(folder, network())
    save_adapter(tmp_path / "again", adapter, "base", "gpt2")
    assert (tmp_path / "again" / WEIGHTS_FILE).read_bytes() == before


def test_values_of_every_kind_survive(folder, tmp_path):
    """Including denormals, negative zero and the largest number."""
    arrays = load_file(folder / WEIGHTS_FILE)
    key = next(iter(arrays))
    odd = np.array([0x00000001, 0x80000000, 0x7F7FFFFF, 0x00800000, 0x80000001, 0xFF7FFFFF], np.uint32)
    arrays[key] = arrays[key].copy()
    arrays[key].reshape(-1)[: odd.size] = odd.view(np.float32)
    save_file(arrays, folder / WEIGHTS_FILE, {"format": "pt"})
    save_adapter(tmp_path / "again", load_adapter(folder, network()), "base", "gpt2")
    assert (tmp_path / "again" / WEIGHTS_FILE).read_bytes() == (folder / WEIGHTS_FILE).read_bytes()


def test_rows_without_update_are_saved_as_zeros(tmp_path):
    adapter = adapted(qv_only=True)
    save_adapter(tmp_path, adapter, "base", "gpt2")
    b = load_file(tmp_path / WEIGHTS_FILE)["base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"]
    assert not b[24:48].any()
    assert b[:24].all() and b[48:].all()
    assert "qv_only" not in (tmp_path / CONFIG_FILE).read_text()


# --- what is read ----------------------------------------------------------------------------------------------------


def test_half_precision_is_widened(folder):
    arrays = load_file(folder / WEIGHTS_FILE)
    save_file({key: a.astype(np.float16) for key, a in arrays.items()}, folder / WEIGHTS_FILE)
    adapter = load_adapter(folder, network())
    for name, parameter in adapter.parameters().items():
        expected = arrays[f"base_model.model.{name}.weight"].astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(parameter.numpy(), expected)


def test_a_target_that_peft_did_not_find_either_is_left_out(folder):
    write_config(folder, target_modules=["q_proj", "c_attn", "c_fc", "c_proj"])
    assert set(load_adapter(folder, network()).config.target_modules) == {"c_attn", "c_proj", "c_fc"}


@pytest.mark.parametrize("start", [True, False, None, "absent", "gaussian", "eva", "orthogonal"])
def test_inits_that_leave_the_base_unchanged(folder, start):
    write_config(folder, init_lora_weights=start)
    assert load_adapter(folder, network()).count() > 0


@pytest.mark.parametrize("start", ["pissa_niter_x", "olora", "loftq", "corda", "lora_ga"])
def test_inits_that_cannot_be_recomputed_are_refused(folder, start):
    write_config(folder, init_lora_weights=start)
    assert f"init_lora_weights: {start!r} is not supported" in refusal(folder)


@pytest.mark.parametrize("key", ["layer_replication", "target_parameters", "megatron_config", "use_qalora",
                                 "alora_invocation_tokens", "use_bdlora", "arrow_config", "kasa_config",
                                 "monteclora_config"])
def test_unsupported_settings_are_refused_if_in_use(folder, key):
    for value in ({"anything": 1}, True, [3]):
        write_config(folder, **{key: value})
        assert f"{key}: {value!r} is not supported" in refusal(folder)
    for value in (None, False, [], {}):
        write_config(folder, **{key: value})
        assert load_adapter(folder, network()).count() > 0


def test_unknown_settings_are_named(folder, capsys):
    write_config(folder, a_setting_of_next_year={"a": 1}, another=None, peft_version="9.9")
    assert load_adapter(folder, network()).count() > 0
    message = capsys.readouterr().err
    assert "a_setting_of_next_year: {'a': 1}" in message and "'9.9'" in message and "another" not in message


@pytest.mark.parametrize("changes, expected", [
    ({"peft_type": "IA3"}, "peft_type: expected LORA, found 'IA3'"),
    ({"peft_type": "absent"}, "peft_type: expected LORA, found None"),
    ({"r": 2.5}, "r: expected a whole number, found 2.5"),
    ({"r": "2"}, "r: expected a whole number, found '2'"),
    ({"r": True}, "r: expected a whole number, found True"),
    ({"r": 0}, "r: expected a whole number from 1 to 4096"),
    ({"r": 10**9}, "r: expected a whole number from 1 to 4096"),
    ({"lora_alpha": None}, "lora_alpha: expected a number, found None"),
    ({"lora_alpha": 10**400}, "a number of 401 digits"),
    ({"lora_alpha": -1}, "alpha: expected a number above 0"),
    ({"lora_dropout": "0"}, "lora_dropout: expected a number, found '0'"),
    ({"lora_dropout": 1.5}, "dropout: expected a number from 0 to below 1"),
    ({"target_modules": None}, "target_modules: expected names or a regular expression, found None"),
    ({"target_modules": []}, "target_modules: expected names"),
    ({"target_modules": ["c_attn", 3]}, "target_modules: expected names"),
    ({"target_modules": {"c_attn": 1}}, "target_modules: expected names"),
    ({"target_modules": "("}, "not a regular expression"),
    ({"target_modules": "c_attn"}, "nothing in the model is called c_attn"),
    ({"target_modules": ["q_proj"]}, "nothing in the model is called q_proj"),
    ({"target_modules": ["c_attn"]}, "no such module is adapted"),
    ({"r": 3}, "adapter_config.json says r = 3, but adapter_model.safetensors holds rank 2"),
])
def test_a_wrong_setting_is_refused(folder, changes, expected):
    write_config(folder, **changes)
    assert expected in refusal(folder)


def test_all_wrong_settings_are_in_one_error(folder):
    write_config(folder, peft_type="IA3", r="x", lora_alpha=None, use_dora=3, target_modules=3)
    message = refusal(folder)
    for name in ("peft_type", "r:", "lora_alpha", "use_dora", "target_modules"):
        assert name in message


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"r": NaN}', b"[" * 100000])
def test_a_damaged_config(folder, content):
    (folder / CONFIG_FILE).write_bytes(content)
    assert CONFIG_FILE in refusal(folder)


def test_missing_files(folder):
    (folder / WEIGHTS_FILE).rename(folder / "elsewhere")
    assert f"{WEIGHTS_FILE}: no such file." in refusal(folder)
    (folder / "adapter_model.bin").write_bytes(b"anything")
    assert "adapter_model.bin: expected PyTorch weights" in refusal(folder)
    (folder / CONFIG_FILE).unlink()
    assert f"{CONFIG_FILE}: cannot be read" in refusal(folder)
    assert "cannot be read" in refusal(folder / "nowhere")


def test_a_truncated_file_is_refused_wherever_it_ends(folder):
    whole = (folder / WEIGHTS_FILE).read_bytes()
    model = network()
    for length in range(0, len(whole), 64):
        (folder / WEIGHTS_FILE).write_bytes(whole[:length])
        assert WEIGHTS_FILE in refusal(folder, model)


def changed_weights(folder, change):
    arrays = {key: a.copy() for key, a in load_file(folder / WEIGHTS_FILE).items()}
    change(arrays)
    save_file(arrays, folder / WEIGHTS_FILE)


A = "base_model.model.transformer.h.0.attn.c_attn.lora_A"
B = "base_model.model.transformer.h.1.mlp.c_fc.lora_B"


@pytest.mark.parametrize("change, expected", [
    (lambda a: a.pop(f"{A}.weight"), "transformer.h.0.attn.c_attn.lora_A: missing"),
    (lambda a: a.update({"base_model.model.transformer.h.9.attn.c_attn.lora_A.weight": np.ones((2, 24), "f4")}),
     "transformer.h.9.attn.c_attn.lora_A: no such module is adapted"),
    (lambda a: a.update({f"{A}.weight": np.ones((2, 25), "f4")}), "expected shape (2, 24), found (2, 25)"),
    (lambda a: a.update({f"{A}.weight": np.ones((24, 2), "f4")}), "holds rank 2, 24"),
    (lambda a: a.update({f"{A}.weight": np.ones(48, "f4")}), "lora_A.weight: expected a LoRA matrix, a magnitude,"),
    (lambda a: a.update({f"{A}.default.weight": np.ones((2, 24), "f4")}), "lora_A.default.weight: expected a LoRA"),
    (lambda a: a.update({"base_model.model.transformer.wte.lora_embedding_A": np.ones((2, 61), "f4")}),
     "transformer.wte.lora_embedding_A: no such module is adapted"),
    (lambda a: a.update({f"{A}.weight": np.ones((2, 24), "i4")}), "expected one of F64, F32, F16, BF16, found I32"),
    (lambda a: a[f"{B}.weight"].__setitem__((3, 1), np.nan), "c_fc.lora_B.weight': holds numbers that are not finite"),
    (lambda a: a[f"{B}.weight"].__setitem__((3, 1), np.inf), "c_fc.lora_B.weight': holds numbers that are not finite"),
    (lambda a: a.clear(), "holds no arrays"),
])
def test_wrong_arrays_are_refused(folder, change, expected):
    changed_weights(folder, change)
    assert expected in refusal(folder)


def test_an_adapter_of_another_family(folder):
    assert "nothing in the model is called" in refusal(folder, network("llama"))


def test_an_adapter_of_a_wider_model(folder):
    message = refusal(folder, network(n_embd=48))
    assert "transformer.h.0.attn.c_attn.lora_A: expected shape (2, 48), found (2, 24)" in message
    assert "Load it with the base model" in message


# As Unsloth writes it: some 70 alternatives with four repetitions each.
UNSLOTH = (r"(?:.*?(?:language|text).*?(?:self_attn|attention|mlp|feed_forward|ffn|dense).*?"
           r"(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj).*?)|"
           r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|mlp|feed_forward|ffn|dense)\."
           r"(?:(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)))")


def test_tensor_names_replace_an_expression_that_takes_too_long(tmp_path):
    made = adapted("llama", target_modules=("q_proj", "down_proj"))
    save_adapter(tmp_path, made, "base", "llama")
    write_config(tmp_path, target_modules=UNSLOTH)
    assert wrong_amount([UNSLOTH], [leaf.name for leaf in leaf_modules(network("llama"))], at_parts=False)
    adapter = load_adapter(tmp_path, network("llama"))
    assert adapter.updates.keys() == made.updates.keys()
    save_adapter(tmp_path / "again", adapter, "base", "llama")
    assert json.loads((tmp_path / "again" / CONFIG_FILE).read_text())["target_modules"] == UNSLOTH
    assert (tmp_path / "again" / WEIGHTS_FILE).read_bytes() == (tmp_path / WEIGHTS_FILE).read_bytes()
    assert len(read_adapter_folder(tmp_path).factors) == len(made.updates)


@pytest.mark.parametrize("before, inside, after, said", [
    ("_orig_mod.", "", "", "_orig_mod (torch.compile)"),
    ("module.", "", "", "module (DataParallel or DistributedDataParallel)"),
    ("", "_orig_mod.", "", "_orig_mod (torch.compile)"),
    ("", "", ".default", "contain the adapter's name, default"),
    ("module.", "", ".mine", "contain the adapter's name, mine"),
])
def test_wrappers_of_tensor_names_are_dropped_and_reported(folder, tmp_path, capsys, before, inside, after, said):
    expected = load_adapter(folder, network())
    start = "base_model.model."
    arrays = {f"{before}{start}{inside}{name[len(start):]}": array for name, array in
              load_file(folder / WEIGHTS_FILE).items()}
    save_file({name.replace(".weight", f"{after}.weight"): array for name, array in arrays.items()},
              folder / WEIGHTS_FILE, {"format": "pt"})
    found = load_adapter(folder, network()).parameters()
    assert all(np.array_equal(array.numpy(), found[name].numpy()) for name, array in expected.parameters().items())
    assert said in capsys.readouterr().err
    assert read_adapter_folder(folder).factors


def test_some_wrong_names_of_each_kind_are_shown(folder):
    arrays = load_file(folder / WEIGHTS_FILE)
    save_file({name.replace(".h.", ".blocks.x."): array for name, array in arrays.items()}, folder / WEIGHTS_FILE)
    message = refusal(folder)
    assert ": missing" in message and "blocks.x.0" in message and "no such module is adapted" in message
